"""Latency experiments: files are checked, trials are cached, a report says what was run."""

import subprocess
import sys
from pathlib import Path

import pytest

from parity_models.bench.experiment import Setting, experiment_names, load_experiment
from parity_models.bench.real_trial import Laboratory
from parity_models.bench.trial import Mode, Trial, simulate_trial
from parity_models.bench.trial_cache import TrialCache
from parity_models.errors import UserError
from parity_models.scheduling.spec import PolicyName, PolicySpec

SMALL = """
title = "Small"
axis = "load"
points = [{ load = 0.3 }, { load = 0.6 }]
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "adaptive parity"
policy = { name = "adaptive-parity" }
"""


def parm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from parity_models.cli.main import main; main()"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)


def trial(mode: Mode, queries: int) -> Trial:
    return Trial(
        mode=mode,
        setting=Setting(instances=2, load=0.3, shuffles=1),
        policy=PolicySpec(name=PolicyName.ADAPTIVE_PARITY),
        queries=queries,
        warm_up=20,
        seed=0,
    )


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_of_the_package_compares_with_equal_resources(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.series[0].policy.name is PolicyName.EQUAL_RESOURCES
    assert len(experiment.points) >= 3


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    experiment = load_experiment("9a")
    setting = experiment.at(4, experiment.series[0])
    assert (setting.instances, setting.parity_instances, setting.k) == (12, 6, 2)
    assert setting.queries_per_second == 270
    assert setting.shuffles == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("axis", "axes"), "missing required field|unknown field"),
        (('axis = "load"', 'axis = "colour"'), "no setting 'colour'"),
        (("load = 0.6", "rate = 5"), "does not say what load is"),
        (("instances = 4", "instances = 0"), "Expected `int` >= 1"),
        (("equal-resources", "equal"), "Invalid enum value"),
        (("[[series]]", "[[series"), "is not an experiment"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SMALL.replace(*change))
    with pytest.raises(UserError, match=reason):
        load_experiment(str(file))


def test_an_experiment_that_is_not_there_is_refused_naming_those_that_are() -> None:
    with pytest.raises(UserError, match="9a"):
        load_experiment("99z")


def test_a_simulated_trial_is_the_same_every_time() -> None:
    assert simulate_trial(trial(Mode.SIMULATED, 500)) == simulate_trial(trial(Mode.SIMULATED, 500))


def test_a_cache_keeps_results_and_takes_a_damaged_one_for_missing(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    result = simulate_trial(trial(Mode.SIMULATED, 200))
    cache.put(trial(Mode.SIMULATED, 200), result)
    assert cache.get(trial(Mode.SIMULATED, 200)) == result
    assert cache.get(trial(Mode.SIMULATED, 201)) is None
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-5])
    assert cache.get(trial(Mode.SIMULATED, 200)) is None


def test_a_real_trial_serves_and_asks_for_real(tmp_path: Path) -> None:
    result = Laboratory(tmp_path).run(trial(Mode.REAL, 100))
    assert (result.answered, result.errors) == (100, 0)
    assert sum(result.sources.values()) == 100
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    assert result.p50_ms > 25


def test_reproduce_writes_a_report_and_pictures_and_reuses_what_was_run(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    arguments = ("reproduce", "latency", "--figure", tmp_path / "small.toml", "--network", "none")
    places = ("--out", tmp_path / "latency.md", "--work", tmp_path / "work")
    first = parm(*arguments, *places)
    assert first.returncode == 0, first.stderr
    report = (tmp_path / "latency.md").read_text()
    assert "| 0.6 | adaptive parity |" in report
    assert (tmp_path / "latency" / "small.png").read_bytes().startswith(b"\x89PNG")
    again = parm(*arguments, *places)
    assert "simulated:" in first.stderr
    assert "simulated:" not in again.stderr


def test_simulate_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    done = parm(
        "simulate", "--queries", "500", "--policy", "hedging", "--json", tmp_path / "s.json"
    )
    assert done.returncode == 0, done.stderr
    assert "hedging" in done.stdout
    assert '"p999_ms"' in (tmp_path / "s.json").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--k", "1"),
        ("simulate", "--load", "0"),
        ("simulate", "--decoder", "none"),
        ("reproduce", "latency", "--preset", "huge"),
        ("reproduce", "latency", "--figure", "99z"),
        ("reproduce", "latency", "--network", "wireless"),
    ],
)
def test_mistakes_end_with_2_and_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    where = ("--work", tmp_path) if arguments[0] == "reproduce" else ("--queries", "100")
    done = parm(*arguments, *where)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
