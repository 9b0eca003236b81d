"""How far the simulator is from real runs is computed, and said."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from parity_models.emulation import Constant
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.reproduce_latency import PRESETS, Plan
from parity_models_lab.latency.setting import Setting
from parity_models_lab.latency.trial import (
    Emulation,
    Mode,
    Trial,
    TrialResult,
    result_of,
    simulate_trial,
)
from parity_models_lab.latency.validation import (
    Compared,
    calm_trial,
    compare,
    overheads_between,
    rows_of,
    summary,
)
from parity_models_lab.results import TrialCache


def result(p50: float, tail: float) -> TrialResult:
    latencies = np.full(1000, p50 / 1e3)
    latencies[-20:] = tail / 1e3
    return result_of(latencies, 0, {"model": 1000})


@pytest.mark.parametrize(("tail", "close"), [(114, True), (116, False), (84, False)])
def test_a_simulation_is_close_if_every_percentile_is_within_15_percent(
    tail: float, close: bool
) -> None:
    compared = Compared("hedging", result(25, 100), result(26, tail))
    assert compared.close is close
    assert compared.off("p99") == pytest.approx(tail / 100 - 1)


def calm_of(setting: Setting) -> Trial:
    equal = PolicyChoice("equal-resources")
    return calm_trial(
        Trial(mode=Mode.REAL, setting=setting, policy=equal, queries=1000, warm_up=100, seed=1)
    )


def test_what_holds_an_instance_longer_is_told_apart_from_what_an_answer_takes_besides() -> None:
    def ran(ms: float, busy: float) -> TrialResult:
        return result_of(np.full(1000, ms / 1e3), 0, {"model": 1000}, busy_ms=busy)

    calm = calm_of(Setting(shuffles=0))
    took = overheads_between(calm, ran(30, 27.5), lambda _: ran(26, 26))
    assert took.held_ms == 1.5
    np.testing.assert_allclose(took.outside_ms, 2.5)
    took = overheads_between(calm, ran(25, 24), lambda _: ran(26, 26))
    assert took.held_ms == 0
    np.testing.assert_allclose(took.outside_ms, 0)


@pytest.mark.parametrize(("p50", "waited"), [(7.4, 1.0), (30.0, 2.0), (5.0, 0.0)])
def test_of_what_is_computed_a_query_waits_for_what_it_took_longer(
    p50: float, waited: float
) -> None:
    calm = calm_of(
        Setting(shuffles=0, instances=2, rate=1, service=Constant(0.005), computing=True)
    )
    real = result_of(np.full(1000, p50 / 1e3), 0, {"model": 1000}, busy_ms=6.4)
    real = msgspec.structs.replace(real, workers_ms=6.0, serving_ms=2.0)
    took = overheads_between(calm, real, simulate_trial)
    assert took.unit_ms == pytest.approx(1)
    assert took.held_ms == pytest.approx(0, abs=0.05)  # 5 for the model, 1 besides, 0.4 on the way
    assert took.serving_ms == pytest.approx(waited, abs=0.05)
    assert took.serving_ms + took.unseen_ms == pytest.approx(2)
    again = simulate_trial(msgspec.structs.replace(calm, mode=Mode.SIMULATED, **took._asdict()))
    beside = took.unseen_ms  # on a machine of one core a unit shares it with that
    assert again.p50_ms == pytest.approx(max(p50, 6.4), abs=beside + 0.1)


def test_what_holds_instances_longer_makes_queries_wait() -> None:
    setting = Setting(shuffles=0, load=0.9)
    trial = Trial(
        mode=Mode.SIMULATED,
        setting=setting,
        policy=PolicyChoice("equal-resources"),
        queries=2000,
        warm_up=100,
        seed=1,
    )
    usual = simulate_trial(trial)
    longer = simulate_trial(msgspec.structs.replace(trial, held_ms=2.0))
    assert usual.busy_ms is not None
    assert longer.busy_ms == pytest.approx(usual.busy_ms + 2, abs=0.1)
    assert longer.p50_ms == pytest.approx(usual.p50_ms + 2, abs=1)
    assert longer.p99_ms > usual.p99_ms + 2


def test_every_policy_of_every_point_is_run_both_ways(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path / "trials")
    ran: list[Trial] = []

    def run(trials: Sequence[Trial]) -> None:
        for trial in trials:
            ran.append(trial)
            high = trial.mode is Mode.SIMULATED and trial.setting.load > 0.6
            cache.keep(trial, result(27, 150 if high else 100))

    experiment = load_experiment("validation")
    plan = Plan("validation", experiment, PRESETS["quick"], 3, Emulation.NOTHING)
    points = compare(plan, [0, 1], 1000, run, cache)
    simulated = [trial for trial in ran if trial.mode is Mode.SIMULATED]
    real = [
        msgspec.structs.replace(trial, mode=Mode.REAL, held_ms=0.0, outside_ms=())
        for trial in simulated
    ]
    calm = [trial for trial in simulated if trial.setting.quiet_links]
    assert len(calm) == 2
    assert len(simulated) == 2 * len(experiment.series) + len(calm)
    assert all(trial in ran for trial in real), "what is simulated was run for real, links and all"
    assert {trial.network for trial in ran} == {Emulation.NOTHING}
    count = len(experiment.series)
    assert summary(points) == f"Within 15% at p50, p99, p99.9: {count} of {2 * count} policies."
    rows = list(rows_of(points))
    assert [abs(row["p99 off"]) > 0.15 for row in rows] == [False] * count + [True] * count  # type: ignore[arg-type]
