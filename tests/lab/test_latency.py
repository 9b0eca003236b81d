"""Latency experiments: their files, settings, plans, simulated and real trials, and reports."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from commands import Here, assert_refused
from parity_models.arrivals import poisson_arrivals
from parity_models.emulation import (
    ColdStart,
    Constant,
    Degradation,
    LogNormal,
    Pauses,
    Slowdowns,
)
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models.training import TrainingOptions
from parity_models_lab import results
from parity_models_lab.contention.processor import Hogs
from parity_models_lab.latency import reproduce_latency
from parity_models_lab.latency.experiment import (
    Experiment,
    experiment_names,
    figures_of,
    load_experiment,
)
from parity_models_lab.latency.real_trial import Laboratory
from parity_models_lab.latency.reproduce_latency import TUNING, Plan, Trials, why_invalid
from parity_models_lab.latency.setting import Bursts, Setting, Tenant
from parity_models_lab.latency.trial import (
    Mode,
    Trial,
    TrialResult,
    result_of,
    simulate_trial,
)
from parity_models_lab.latency.validation import (
    calm_trial,
    compare,
    off,
    overheads_between,
    summary,
)

SIMULATED = """
title = "Small"
axis = "load"
points = [{ load = 0.3 }, { load = 0.6 }]
simulated_queries = 1000
warm_up = 100
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "adaptive parity"
policy = { name = "adaptive" }
"""

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

SWEPT = TUNED.replace("tuned = {", "swept = { k = [2, 4],")


def written(folder: Path, text: str) -> Experiment:
    (folder / "mine.toml").write_text(text)
    return load_experiment(str(folder / "mine.toml"))


def trial_of(policy: str = "equal-resources", mode: Mode = Mode.SIMULATED, **setting: Any) -> Trial:
    return Trial(
        mode=mode,
        setting=msgspec.convert({"shuffles": 0} | msgspec.to_builtins(setting), Setting),
        policy=PolicyChoice(policy),
        queries=4000,
        warm_up=100,
        seed=0,
    )


def of(p99: float, p999: float, errors: int = 0) -> TrialResult:
    """A result with these latencies in ms."""
    found = result_of(np.full(100, 0.01), errors, {"model": 100})
    return msgspec.structs.replace(found, p99_ms=p99, p999_ms=p999)


# Files


@pytest.mark.parametrize("name", experiment_names())
def test_every_trial_of_the_package_s_experiments_can_be_run(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.series[0].choice.name == "equal-resources"
    for trial in Plan(name, experiment, 0).all_trials():
        trial.policy.build(trial.stand_ins)
        setting = trial.setting
        setting.faults(0, 10.0).check(setting.all_instances)


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    experiment = load_experiment("9a")
    setting = experiment.at(4, experiment.series[0])
    assert (setting.instances, setting.parity_instances, setting.k) == (12, 6, 2)
    assert (setting.queries_per_second, setting.shuffles) == (270, 4)


def test_all_is_every_figure_but_those_that_take_long() -> None:
    everyone = figures_of(["all", "9a"])
    assert {"late", "speed", "disturbances", "validation"}.isdisjoint(everyone)
    assert everyone.count("9a") == 1


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        (SIMULATED, ("axis", "axes"), "unknown field `axes`"),
        (SIMULATED, ('axis = "load"', 'axis = "colour"'), "does not say what colour is"),
        (SIMULATED, ("load = 0.6 }", "load = 1, zzz = 1 }"), "unknown field `zzz`"),
        (SIMULATED, ("load = 0.6", "rate = 5"), "does not say what load is"),
        (SIMULATED, ("instances = 4", "instances = 0"), "instances: Expected `int` >= 1"),
        (SIMULATED, ("equal-resources", "equal"), "there is no policy .equal."),
        (SIMULATED, ("[[series]]", "[[series"), "is not TOML: .* .at line 9"),
        (SIMULATED, ("warm_up = 100", "real = [2]"), "real names point 2; there are"),
        (TUNED, ("[0.5, 0.9]", "[]"), "of length >= 1"),
        (TUNED, ("[0.5, 0.9]", "[0.5, 1.5]"), "hedge_quantile must be between 0 and 1"),
        (TUNED, ("hedge_quantile = [", "copies = ["), "not an option of the policy hedging"),
        (TUNED, ("equal resources", "hedging, tuned"), "two series have one label"),
        (SWEPT, ("k = [2, 4]", "k = [2, 400]"), "k: Expected `int` <= 9"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(
    text: str, change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        written(tmp_path, text.replace(*change))


def test_a_swept_series_is_one_for_each_combination(tmp_path: Path) -> None:
    experiment = written(tmp_path, SWEPT)
    assert len(experiment.series) == 1 + 2 * 2 * 2
    last = experiment.series[-1]
    assert last.label == "hedging, tuned (k=4, hedge_quantile=0.9, dispatch=latency-aware)"
    assert last.choice.options == {"hedge_budget": 1.0, "hedge_quantile": 0.9}
    assert experiment.at(1, last).k == 4


# Settings

SLOW = Slowdowns(5.0, 1.0, Constant(0.0), factor=4.0)
BURST = {"factor": 3.0, "every": 20.0, "length": 5.0}


def test_in_bursts_queries_come_a_multiple_as_often_as_between_them() -> None:
    bursts = Bursts(factor=3.0, every=20.0, length=2.0)
    steady = poisson_arrivals(100.0, 100_000, 1)
    times = bursts.compress(steady)
    assert (np.diff(times) >= 0).all()
    cycles = times[-1] // 20
    whole = times[times < cycles * 20]
    within = whole % 20 >= 18
    assert within.sum() / (2 * cycles) == pytest.approx(300, rel=0.03)
    assert (~within).sum() / (18 * cycles) == pytest.approx(100, rel=0.03)
    first = steady < 18
    assert np.allclose(times[first], steady[first])


def test_workers_obey_pauses_and_slowdowns_of_nodes_and_another_tenant() -> None:
    setting = Setting(slowdowns=SLOW, pauses=Pauses(5.0, Constant(0.1)), nodes=3, tenant=Tenant(3))
    plan = setting.faults(5, 60.0)
    assert plan.slowdowns == msgspec.structs.replace(SLOW, nodes=3)
    assert plan.pauses == Pauses(5.0, Constant(0.1), nodes=3)
    assert plan.neighbours is not None
    assert len(set(plan.neighbours.workers)) == 3
    assert setting.faults(5, 60.0) == plan


def test_one_instance_is_killed_every_so_many_seconds() -> None:
    kills = Setting(kill_every=2.0).faults(0, 60.0).kills
    assert [kill.at for kill in kills] == [2.0 * (i + 1) for i in range(30)]
    assert len({kill.worker for kill in kills}) > 5
    assert Setting(kill_every=2.0).faults(0, 60.0).kills == kills


def test_a_load_is_a_share_of_what_instances_carry_on_average() -> None:
    setting = Setting(load=0.5, service=LogNormal(0.02, 1.0))
    assert setting.queries_per_second == pytest.approx(0.5 * 12 / (0.02 * exp(0.5)))
    alike, unequal = (Setting(load=0.5, generations=each) for each in ((), (1.0, 2.0)))
    assert unequal.queries_per_second == pytest.approx(alike.queries_per_second * 0.75)
    bursty = trial_of(burst=BURST)
    assert bursty.seconds == pytest.approx(bursty.arrivals()[-1], rel=0.05)
    assert bursty.seconds < trial_of().seconds


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hogs": Hogs()}, "set computing"),
        ({"burst": BURST | {"length": 30.0}}, "make length shorter"),
        ({"tenant": Tenant(19)}, "cannot each share a machine with one of 18"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        trial_of(**change)


# Simulated trials


@pytest.mark.slow
def test_each_disturbance_makes_the_tail_longer() -> None:
    calm = simulate_trial(trial_of())
    assert simulate_trial(trial_of()) == calm
    for change in (
        {"degraded": Degradation(5, 2.0)},
        {"nodes": 3, "slowdowns": SLOW},
        {"burst": {"factor": 4.0, "every": 5.0, "length": 1.0}},
        {"kill_every": 0.5, "cold": ColdStart(5.0, 5.0)},
        {"generations": [1.0, 1.7]},
    ):
        assert simulate_trial(trial_of(**change)).p99_ms > 1.3 * calm.p99_ms, change


def test_a_trial_is_run_once_and_again_if_its_result_is_damaged(tmp_path: Path) -> None:
    ran: list[Trial] = []

    def run(trial: Trial) -> TrialResult:
        ran.append(trial)
        return of(1, 2)

    trial = trial_of(mode=Mode.REAL)
    assert Trials(tmp_path, run)[trial] == Trials(tmp_path, run)[trial] == of(1, 2)
    assert ran == [trial]
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-5])
    Trials(tmp_path, run).run([trial, trial])
    assert ran == [trial] * 2


def test_a_simulated_server_on_a_slower_processor_is_slower_until_the_run_is_invalid() -> None:
    def at(speed: float) -> Trial:
        trial = trial_of(load=0.5, service={"type": "constant", "seconds": 0.025}, speed=speed)
        return msgspec.structs.replace(trial, queries=1500)

    ideal, full, tenth = (simulate_trial(at(speed)) for speed in (0, 1, 0.1))
    assert ideal.p50_ms < full.p50_ms < tenth.p50_ms
    assert full.p99_ms < tenth.p99_ms
    assert ideal.lag_ms is None
    assert not why_invalid(full, at(1).setting)
    assert why_invalid(tenth, at(0.1).setting) == "the server was its own bottleneck"
    late = msgspec.structs.replace(full, send_delay_p99_ms=1.5)
    assert why_invalid(late, at(1).setting) == "the load generator was late"


# Tuning


def trials_of(
    run: Callable[[Trial], TrialResult], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Trials:
    """Trials of which each is run by this function."""
    monkeypatch.setattr(reproduce_latency, "simulate_trial", run)
    monkeypatch.setattr(results, "ProcessPoolExecutor", partial(ThreadPoolExecutor, 1))
    return Trials(folder / "trials", run)


ALIKE = {
    (quantile, rule): of(50, 60)
    for quantile in (0.5, 0.9)
    for rule in ("single-queue", "latency-aware")
}


@pytest.mark.parametrize(
    ("change", "result", "quantile", "rule"),
    [
        ("", of(55, 59), 0.9, "latency-aware"),
        ('tuned_by = "p99"\n', of(55, 59), 0.5, "single-queue"),
        ("", of(10, 10, errors=1), 0.5, "single-queue"),
    ],
)
def test_the_options_of_the_lowest_tail_are_run_simulated_and_real(
    change: str,
    result: TrialResult,
    quantile: float,
    rule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options with which queries fail are worse than all others."""
    plan = Plan("t", written(tmp_path, TUNED + change), 0)
    by_options = ALIKE | {(0.9, "latency-aware"): result}
    tuning: list[Trial] = []

    def simulated(trial: Trial) -> TrialResult:
        tuning.append(trial)
        return by_options[trial.policy.options["hedge_quantile"], str(trial.policy.dispatch)]

    tuned = plan.tuned(trials_of(simulated, tmp_path, monkeypatch))
    assert len({trial.key for trial in tuning}) == len(tuning) == 2 * 2 * 2
    assert {(t.mode, t.policy.options["hedge_budget"]) for t in tuning} == {(Mode.SIMULATED, 1.0)}
    found = [trial for _, trial in tuned.trials(plan.experiment.series[1])]
    assert {trial.mode for trial in found} == set(Mode)
    for trial in found:
        assert trial.policy.options == {"hedge_budget": 1.0, "hedge_quantile": quantile}
        assert trial.policy.dispatch == rule


def test_simulations_that_options_are_chosen_by_are_of_bounded_length(tmp_path: Path) -> None:
    long = TUNED.replace("[setting]", "simulated_queries = 1000000\n[setting]")
    plan = Plan("tuned", written(tmp_path, long), 0, real=False)
    tuned = plan.candidates(plan.experiment.series[1], 0)
    assert {trial.queries for trial in tuned} == {TUNING}
    assert {trial.queries for trial in plan.all_trials()} == {1_000_000}


# The command


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "out" / "mine.json").read_text())["rows"]
    return rows


def latency(lab_here: Here, folder: Path, *more: object) -> None:
    places = ("--out", folder / "out", "--work", folder / "work")
    done = lab_here("latency", "--figure", folder / "mine.toml", *(more or NO_REAL_RUNS), *places)
    assert done.returncode == 0, done.stderr


NO_REAL_RUNS = ("--network", "none")


@pytest.mark.slow
def test_it_writes_rows_and_pictures_and_reuses_earlier_runs(
    lab_here: Here, tmp_path: Path
) -> None:
    written(tmp_path, SIMULATED)
    latency(lab_here, tmp_path)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.json")}
    assert len(kept) == 4
    result = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert result["command"].startswith("parm-lab latency --figure")
    assert result["queries"] == {"real": 2000, "simulated": 1000}
    at = [(row["load"], row["policy"], row["run"]) for row in result["rows"]]
    assert at == [
        (load, policy, "simulated")
        for load in ("0.3", "0.6")
        for policy in ("equal resources", "adaptive parity")
    ]
    for row in result["rows"]:
        assert 0 < row["p50"] <= row["p99"] <= row["p99.9"]
        assert row["failed"] == 0
    assert (tmp_path / "out" / "mine.png").read_bytes().startswith(b"\x89PNG")
    latency(lab_here, tmp_path)
    assert kept == {file: file.stat().st_mtime_ns for file in kept}


@pytest.mark.slow
def test_it_tunes_before_it_runs(lab_here: Here, tmp_path: Path) -> None:
    written(tmp_path, TUNED.replace("[setting]", "simulated_queries = 300\n[setting]"))
    latency(lab_here, tmp_path)
    tuned = "hedging, tuned (hedge_quantile=0."
    assert any(row["policy"].startswith(tuned) for row in rows_in(tmp_path))


@pytest.mark.parametrize("mistake", ["--figure 99z", "--network wireless"])
def test_mistakes_end_with_2_and_one_line(lab_here: Here, mistake: str, tmp_path: Path) -> None:
    assert_refused(lab_here("latency", *mistake.split(), "--work", tmp_path), "")


# Validation


@pytest.mark.parametrize(("tail", "close"), [(114, True), (116, False), (84, False)])
def test_a_simulation_is_close_if_every_percentile_is_within_15_percent(
    tail: float, close: bool
) -> None:
    def result(p50: float, tail: float) -> TrialResult:
        latencies = np.full(1000, p50 / 1e3)
        latencies[-20:] = tail / 1e3
        return result_of(latencies, 0, {"model": 1000})

    row = off(result(25, 100), result(26, tail))
    assert row["p99 off"] == pytest.approx(tail / 100 - 1)
    assert summary([row]).endswith(f"{int(close)} of 1 policies.")


def ran(ms: float, busy: float) -> TrialResult:
    found = result_of(np.full(1000, ms / 1e3), 0, {"model": 1000})
    return msgspec.structs.replace(found, busy_ms=busy)


@pytest.mark.parametrize(
    ("real", "held", "outside"), [(ran(30, 27.5), 1.5, 2.5), (ran(25, 24), 0, 0)]
)
def test_overheads_hold_an_instance_or_an_answer(
    real: TrialResult, held: float, outside: float
) -> None:
    calm = calm_trial(trial_of(mode=Mode.REAL))
    took = overheads_between(calm, real, lambda _: ran(26, 26))
    assert took.held_ms == held
    np.testing.assert_allclose(took.outside_ms, outside)


@pytest.mark.parametrize(("p50", "waited"), [(7.4, 1.0), (30.0, 2.0), (5.0, 0.0)])
def test_of_what_is_computed_a_query_waits_for_what_it_took_longer(
    p50: float, waited: float
) -> None:
    service = msgspec.to_builtins(Constant(0.005))
    trial = trial_of(mode=Mode.REAL, instances=2, rate=1, service=service, computing=True)
    calm = calm_trial(msgspec.structs.replace(trial, queries=1000))
    real = msgspec.structs.replace(ran(p50, 6.4), workers_ms=6.0, serving_ms=2.0)
    took = overheads_between(calm, real, simulate_trial)
    assert took.unit_ms == pytest.approx(1)
    assert took.held_ms == pytest.approx(0, abs=0.05)  # 5 for the model, 1 besides, 0.4 on the way
    assert took.serving_ms == pytest.approx(waited, abs=0.05)
    assert took.serving_ms + took.unseen_ms == pytest.approx(2)
    again = simulate_trial(msgspec.structs.replace(calm, mode=Mode.SIMULATED, overheads=took))
    beside = took.unseen_ms  # on a machine of one core a unit shares it with that
    assert again.p50_ms == pytest.approx(max(p50, 6.4), abs=beside + 0.2)


def test_every_policy_of_every_point_is_run_both_ways_with_the_options_tuned_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Trial] = []

    def run(trial: Trial) -> TrialResult:
        ran.append(trial)
        return of(40, 50) if trial.policy.options.get("hedge_quantile") == 0.9 else of(50, 60)

    plan = Plan("tuned", written(tmp_path, TUNED), 3)
    rows, overheads = compare(plan, 1000, trials_of(run, tmp_path, monkeypatch))
    real = [trial for trial in ran if trial.mode is Mode.REAL]
    hedged = [trial.policy.options for trial in real if trial.policy.name == "hedging"]
    assert [options["hedge_quantile"] for options in hedged] == [0.9] * 2
    assert {trial.setting.quiet_links for trial in real} == {True, False}, "one of them is calm"
    assert summary(rows) == "Within 15% at p50, p99, p99.9: 4 of 4 policies."
    assert [row["policy"] for row in rows] == ["equal resources", "hedging, tuned"] * 2
    assert [row["at"] for row in overheads] == ["0.3", "0.6"]


REAL = """
title = "Small"
axis = "load"
points = [{ load = 0.6 }]
warm_up = 100
[setting]
instances = 2
shuffles = 0
service = { type = "constant", seconds = 0.01 }
kill_every = 100
generations = [1, 3]
nodes = 2
pauses = { mean_between = 5, length = { type = "constant", seconds = 0.1 } }
tenant = { instances = 3, rate = 10 }
burst = { factor = 3, every = 1, length = 0.5 }
[[series]]
label = "no redundancy"
policy = { name = "none" }
[[series]]
label = "adaptive parity"
policy = { name = "adaptive" }
"""


@pytest.mark.slow
def test_validation_runs_every_policy_for_real_under_disturbances(
    lab_here: Here, tmp_path: Path
) -> None:
    """A policy without redundancy has the first instances; the others' kills are left out."""
    brief = Laboratory(tmp_path / "work" / "bundles", training=TrainingOptions(epochs=6))
    for trial in Plan("", written(tmp_path, REAL), 0).all_trials():
        brief.bundle_for(trial)
    done = lab_here(
        "validation", "--figure", tmp_path / "mine.toml", "--queries", "100",
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert [row["policy"] for row in result["rows"]] == ["no redundancy", "adaptive parity"]
    assert all(row["p50 real"] > 10 for row in result["rows"])
    assert result["overheads"][0]["held"] >= 0
