"""Degradation, correlated slowness, bursts, cold and unequal instances: in settings and results."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from commands import Here
from parity_models.emulation import ColdStart, Degradation
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.reproduce_latency import kept
from parity_models_lab.latency.setting import Setting
from parity_models_lab.latency.trial import PARTS, Mode, Trial, result_of, simulate_trial

FIGURES = ("bursts", "correlated", "degradation", "generations", "slow-start")


def trial(policy: str = "equal-resources", **setting: object) -> Trial:
    return Trial(
        mode=Mode.SIMULATED,
        setting=msgspec.convert({"shuffles": 0} | setting, Setting),
        policy=PolicyChoice(policy),
        queries=4000,
        warm_up=100,
        seed=0,
    )


def test_real_and_simulated_workers_obey_the_same_plan() -> None:
    setting = Setting(
        shuffles=0,
        slow_every=9.0,
        degraded_sets=5,
        cold_factor=4.0,
        generations=(1.0, 1.7),
        nodes=3,
    )
    real, simulated = setting.faults(0, 60.0), setting.simulated_faults(0, 60.0)
    assert real == simulated
    assert real.degradation == Degradation(5, 20.0, 6.0)
    assert real.cold_start == ColdStart(4.0, 5.0)
    assert real.slowdowns is not None
    assert real.slowdowns.nodes == 3


def test_pauses_are_of_whole_nodes_where_there_are_some() -> None:
    setting = Setting(shuffles=0, pause_every=9.0, nodes=3)
    contention = setting.contention(0, links=True)
    simulated = setting.simulated_faults(0, 60.0).pauses
    assert contention is not None
    assert contention.pauses == simulated
    assert simulated is not None
    assert simulated.nodes == 3


def test_load_is_a_share_of_what_unequal_instances_carry() -> None:
    alike, unequal = (Setting(load=0.5, generations=each) for each in ((), (1.0, 2.0)))
    assert unequal.queries_per_second == pytest.approx(alike.queries_per_second * 0.75)
    assert unequal.carried == pytest.approx(0.5)


def test_a_trial_lasts_until_the_last_query_bursts_counted_in() -> None:
    bursty = trial(burst=3.0, burst_length=5.0)
    assert bursty.seconds == pytest.approx(bursty.arrivals()[-1], rel=0.05)
    assert bursty.seconds < trial().seconds


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"slow_every": 1.0, "hogs": 1}, "leave out slow_every"),
        ({"burst": 2.0, "burst_length": 30.0}, "make burst_length shorter"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        trial(**change)


@pytest.mark.slow
def test_each_of_them_makes_the_tail_longer() -> None:
    calm = simulate_trial(trial())
    for change in (
        {"degraded_sets": 5, "degraded_turn": 2.0},
        {"nodes": 3, "slow_every": 5.0, "slow_factor": 4.0},
        {"burst": 4.0, "burst_every": 5.0, "burst_length": 1.0},
        {"kill_every": 0.5, "cold_factor": 5.0},
        {"generations": [1.0, 1.7]},
    ):
        assert simulate_trial(trial(**change)).p99_ms > 1.3 * calm.p99_ms, change


def test_what_a_policy_keeps_is_the_share_of_parts_near_the_undisturbed() -> None:
    calm = result_of(np.full(PARTS * 10, 0.02), 0, {})
    course = np.full(PARTS * 10, 0.02)
    course[: PARTS * 10 // 4] = 0.031
    assert kept(calm, calm) == 1.0
    assert kept(result_of(course, 0, {}), calm) == 0.75


@pytest.mark.parametrize("name", FIGURES)
def test_figures_run_at_two_scales_of_which_one_for_real(name: str) -> None:
    experiment = load_experiment(name)
    scales = {
        point: experiment.at(point, experiment.series[0]).all_instances
        for point in range(len(experiment.points))
    }
    assert sorted(set(scales.values())) in ([18, 1000], [18, 1001])
    assert {scales[point] for point in experiment.real} == {18}
    assert experiment.apart


def test_undisturbed_points_are_there(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'title = "T"\naxis = "load"\npoints = [{ load = 0.5 }]\nundisturbed = [1]\n'
        '[[series]]\nlabel = "l"\npolicy = { name = "none" }\n'
    )
    with pytest.raises(UserError, match="undisturbed names point 1; there are 1, from 0"):
        load_experiment(str(tmp_path / "mine.toml"))


def test_rows_say_what_is_kept(lab_here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'title = "T"\naxis = "what"\nundisturbed = [0]\nsimulated_queries = 300\n'
        'points = [{ what = "none" }, { what = "cold", kill_every = 0.2, cold_factor = 9 }]\n'
        "[setting]\nshuffles = 0\n"
        '[[series]]\nlabel = "equal resources"\npolicy = { name = "equal-resources" }\n'
    )
    done = lab_here(
        "latency", "--figure", tmp_path / "mine.toml", "--network", "none",
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calm, cold = json.loads((tmp_path / "out" / "mine.json").read_text())["rows"]
    assert calm["kept"] == 1
    assert cold["kept"] < 1
