"""Series whose options are chosen anew at each point: by simulation, from those that are given."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from commands import Here
from parity_models.errors import UserError
from parity_models_lab.latency.experiment import Experiment, load_experiment
from parity_models_lab.latency.reproduce_latency import PRESETS, TUNING, Plan, collect
from parity_models_lab.latency.trial import Emulation, Mode, Trial, TrialResult, result_of
from parity_models_lab.latency.validation import compare
from parity_models_lab.results import TrialCache

TUNED = """
title = "Tuned"
axis = "load"
points = [{ load = 0.3 }, { load = 0.6 }]
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "hedging, tuned"
policy = { name = "hedging", hedge_budget = 1.0 }
tuned = { hedge_quantile = [0.5, 0.9], dispatch = ["single-queue", "latency-aware"] }
"""


def experiment(tmp_path: Path, text: str = TUNED) -> Experiment:
    (tmp_path / "tuned.toml").write_text(text)
    return load_experiment(str(tmp_path / "tuned.toml"))


def of(p99: float, p999: float, errors: int = 0) -> TrialResult:
    """A result with these latencies in ms."""
    latencies = np.full(1000, 0.001)
    found = result_of(latencies, errors, {"model": 1000})
    return msgspec.structs.replace(found, p99_ms=p99, p999_ms=p999)


def plan_with(
    tmp_path: Path, results: dict[tuple[float, str], TrialResult], text: str = TUNED
) -> Plan:
    """A plan that is tuned by such results, by quantile and dispatch rule, at both points."""
    plan = Plan("tuned", experiment(tmp_path, text), PRESETS["quick"], 0, Emulation.NOTHING)
    cache = TrialCache(tmp_path / "trials")
    for trial in plan.tuning_trials():
        where = (trial.policy.options["hedge_quantile"], str(trial.policy.dispatch))
        cache.keep(trial, results[where])
    return plan.tuned(cache)


ALIKE = {
    (quantile, rule): of(50, 60)
    for quantile in (0.5, 0.9)
    for rule in ("single-queue", "latency-aware")
}


def trials_of(plan: Plan) -> list[Trial]:
    """Those of the tuned series."""
    return [trial for _, trial in plan.trials(plan.experiment.series[1])]


def test_every_combination_of_the_given_values_is_simulated_at_every_point(tmp_path: Path) -> None:
    plan = Plan("tuned", experiment(tmp_path), PRESETS["quick"], 0, Emulation.NOTHING)
    trials = plan.tuning_trials()
    assert len({trial.key for trial in trials}) == len(trials) == 2 * 2 * 2
    assert {trial.mode for trial in trials} == {Mode.SIMULATED}
    assert all(trial.policy.options["hedge_budget"] == 1.0 for trial in trials)


def test_the_options_of_the_lowest_tail_are_run_simulated_and_real(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, ALIKE | {(0.9, "latency-aware"): of(55, 59)})
    assert {trial.mode for trial in trials_of(plan)} == set(Mode)
    for trial in trials_of(plan):
        assert trial.policy.options == {"hedge_budget": 1.0, "hedge_quantile": 0.9}
        assert trial.policy.dispatch == "latency-aware"


def test_p99_may_be_what_they_are_chosen_by(tmp_path: Path) -> None:
    by_p99 = TUNED + 'tuned_by = "p99"\n'
    results = ALIKE | {(0.9, "latency-aware"): of(55, 59), (0.5, "single-queue"): of(40, 90)}
    for trial in trials_of(plan_with(tmp_path, results, by_p99)):
        assert trial.policy.options["hedge_quantile"] == 0.5


def test_options_with_which_queries_fail_are_worse_than_others(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, ALIKE | {(0.9, "latency-aware"): of(10, 10, errors=1)})
    for trial in trials_of(plan):
        assert (trial.policy.options["hedge_quantile"], trial.policy.dispatch) != (
            0.9,
            "latency-aware",
        )


def test_simulations_that_options_are_chosen_by_are_of_bounded_length(tmp_path: Path) -> None:
    long = TUNED.replace("[setting]", "simulated_queries = 1000000\n[setting]")
    plan = Plan("tuned", experiment(tmp_path, long), PRESETS["quick"], 0, None)
    assert {trial.queries for trial in plan.tuning_trials()} == {TUNING}
    assert {trial.queries for trial in plan.all_trials()} == {1_000_000}


def test_tables_say_what_was_chosen(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, ALIKE | {(0.9, "latency-aware"): of(55, 59)})
    line = collect(plan, TrialCache(tmp_path / "none")).lines[1]
    assert line.label == "hedging, tuned"
    assert line.label_at(0) == "hedging, tuned (hedge_quantile=0.9, dispatch=latency-aware)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[0.5, 0.9]", "[]"), "must have 1 or more elements"),
        (("[0.5, 0.9]", "[0.5, 1.5]"), "hedge_quantile must be between 0 and 1"),
        (("hedge_quantile = [", "copies = ["), "no option of the policy hedging"),
        (("equal resources", "hedging, tuned"), "two series have one label"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        experiment(tmp_path, TUNED.replace(*change))


@pytest.mark.slow
def test_latency_tunes_before_it_runs(lab_here: Here, tmp_path: Path) -> None:
    (tmp_path / "tuned.toml").write_text(
        TUNED.replace("[setting]", "simulated_queries = 300\n[setting]")
    )
    done = lab_here(
        "latency", "--figure", tmp_path / "tuned.toml", "--network", "none",
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "tuned.json").read_text())["rows"]
    assert any(row["policy"].startswith("hedging, tuned (hedge_quantile=0.") for row in rows)


def test_validation_runs_tuned_series_as_they_are_tuned_there(tmp_path: Path) -> None:
    plan = Plan("tuned", experiment(tmp_path), PRESETS["quick"], 0, Emulation.NOTHING)
    cache = TrialCache(tmp_path / "trials")
    ran: list[Trial] = []

    def run(trials: Sequence[Trial]) -> None:
        ran.extend(trials)
        for trial in trials:
            best = trial.policy.options.get("hedge_quantile") == 0.9
            cache.keep(trial, of(40, 50) if best else of(50, 60))

    compare(plan, [1], 1000, run, cache)
    assert {trial.setting.load for trial in ran[:4]} == {0.6}, "the other point is not tuned"
    real = [trial for trial in ran if trial.mode is Mode.REAL and trial.policy.name == "hedging"]
    assert [trial.policy.options["hedge_quantile"] for trial in real] == [0.9]
