"""Trials, simulated and real: they have names, and results that are kept."""

import json
from pathlib import Path

import msgspec
import pytest

from commands import Here
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.real_trial import Laboratory
from parity_models_lab.latency.setting import Setting
from parity_models_lab.latency.trial import Emulation, Mode, Trial, simulate_trial
from parity_models_lab.results import TrialCache
from small_experiment import SIMULATED, brief, train_briefly

pytestmark = pytest.mark.slow


def trial(mode: Mode, queries: int) -> Trial:
    return Trial(
        mode=mode,
        setting=Setting(instances=2, load=0.3, shuffles=1),
        policy=PolicyChoice("adaptive"),
        queries=queries,
        warm_up=20,
        seed=0,
        network=Emulation.SHUFFLES,
    )


def test_trials_that_differ_in_anything_have_different_names() -> None:
    asked = trial(Mode.SIMULATED, 500)
    other = PolicyChoice("adaptive", dispatch="single-queue")
    changes = ({"mode": Mode.REAL}, {"seed": 1}, {"policy": other}, {"queries": 501})
    keys = {msgspec.structs.replace(asked, **change).key for change in changes}
    assert len({asked.key, *keys}) == 1 + len(changes)
    said = PolicyChoice("adaptive", dispatch="latency-aware")
    assert msgspec.structs.replace(asked, policy=said).key == asked.key


def test_a_simulated_trial_is_the_same_every_time() -> None:
    assert simulate_trial(trial(Mode.SIMULATED, 500)) == simulate_trial(trial(Mode.SIMULATED, 500))


def test_a_cache_keeps_results_and_takes_a_damaged_one_for_missing(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    result = simulate_trial(trial(Mode.SIMULATED, 200))
    cache.keep(trial(Mode.SIMULATED, 200), result)
    assert cache.find(trial(Mode.SIMULATED, 200)) == result
    assert cache.find(trial(Mode.SIMULATED, 201)) is None
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-5])
    assert cache.find(trial(Mode.SIMULATED, 200)) is None


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """Keeps its bundles, so that these are trained once."""
    return brief(tmp_path_factory.mktemp("work"))


def test_a_policy_without_redundancy_has_the_first_instances_of_a_real_trial(
    laboratory: Laboratory,
) -> None:
    """What is planned for the others, a kill and pauses, is left out."""
    asked = trial(Mode.REAL, 100)
    setting = msgspec.structs.replace(asked.setting, kill_every=100.0, pause_every=5.0)
    asked = msgspec.structs.replace(asked, setting=setting, policy=PolicyChoice("none"), seed=9)
    assert (asked.workers, setting.all_instances) == (2, 3)
    assert [kill.worker for kill in setting.faults(9, asked.seconds).kills] == [2]
    result = laboratory.run(asked)
    assert (result.answered, result.errors) == (100, 0)


def test_contention_may_be_drawn_in_a_real_trial_and_spares_those_not_there(
    laboratory: Laboratory,
) -> None:
    asked = trial(Mode.REAL, 100)
    setting = msgspec.structs.replace(asked.setting, tenants=3, hogs=1, pause_every=5.0)
    asked = msgspec.structs.replace(
        asked,
        setting=setting,
        policy=PolicyChoice("none"),
        network=Emulation.EVERYTHING,
    )
    assert asked.workers < setting.all_instances
    result = laboratory.run(asked)
    assert (result.answered, result.errors) == (100, 0)


def test_bursts_nodes_and_unequal_instances_are_in_a_real_trial(laboratory: Laboratory) -> None:
    asked = trial(Mode.REAL, 100)
    changes = {"burst": 3.0, "burst_every": 1.0, "burst_length": 0.5, "nodes": 2}
    setting = msgspec.structs.replace(asked.setting, **changes, generations=(1.0, 3.0))
    result = laboratory.run(msgspec.structs.replace(asked, setting=setting))
    assert (result.answered, result.errors) == (100, 0)
    assert result.p99_ms > 3 * 25


def test_a_real_trial_serves_and_asks_for_real(laboratory: Laboratory) -> None:
    result = laboratory.run(trial(Mode.REAL, 100))
    assert (result.answered, result.errors) == (100, 0)
    assert sum(result.sources.values()) == 100
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    assert result.p50_ms > 25
    assert result.busy_ms is not None
    assert result.busy_ms > 25


def test_validation_compares_every_policy_with_what_answers_take_outside(
    lab_here: Here, laboratory: Laboratory, tmp_path: Path
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(
        SIMULATED.replace("{ load = 0.3 }, ", "").replace(
            "instances = 4", 'instances = 2\nservice = { type = "constant", seconds = 0.01 }'
        )
    )
    work = laboratory.folder.parent
    train_briefly(work, file)
    done = lab_here(
        "validation", "--figure", file, "--network", "drawn", "--queries", "100",
        "--out", tmp_path / "out", "--work", work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert [row["policy"] for row in result["rows"]] == ["equal resources", "adaptive parity"]
    assert result["overheads"][0]["held"] >= 0
