"""Latency figures: their files, settings, simulated and real trials, and reports."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import exp
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import numpy as np
import pytest

from commands import Here
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import LogNormal
from parity_models_lab import results
from parity_models_lab.latency import reproduce
from parity_models_lab.latency.figure import FIGURES, Figure, load_figure
from parity_models_lab.latency.reproduce import (
    TUNING,
    Trials,
    off,
    run_figure,
    why_invalid,
)
from parity_models_lab.latency.trial import (
    Bursts,
    Mode,
    Setting,
    Trial,
    TrialResult,
    result_of,
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
label = "hedging, tuned"
policy = { name = "hedging", hedge_budget = 1.0 }
tuned = { hedge_quantile = [0.5, 0.9], dispatch = ["single-queue", "latency-aware"] }
"""

SWEPT = SIMULATED.replace("tuned = {", "swept = { k = [2, 4],")


def written(folder: Path, text: str) -> Figure:
    (folder / "mine.toml").write_text(text)
    return load_figure(str(folder / "mine.toml"))


def trial_of(policy: str = "equal-resources", mode: Mode = "simulated", **setting: Any) -> Trial:
    return Trial(
        mode=mode,
        setting=msgspec.convert({"shuffles": 0} | setting, Setting),
        policy=PolicyChoice(policy),
        queries=4000,
        warm_up=100,
        seed=0,
    )


def of(p99: float, p999: float, errors: int = 0) -> TrialResult:
    """A result with these latencies in ms."""
    found = result_of(np.full(100, 0.01), errors, stood_in=0, busy=0.025)
    return msgspec.structs.replace(found, row=found.row | {"p99": p99, "p99.9": p999})


# Files


@pytest.mark.parametrize("name", FIGURES)
def test_every_trial_of_the_package_s_figures_can_be_run(name: str) -> None:
    figure = load_figure(name)
    assert figure.series[0].candidates == [PolicyChoice("equal-resources")]
    for point in range(len(figure.points)):
        for series in figure.series:
            trial = trial_of()
            trial = msgspec.structs.replace(trial, setting=figure.at(point, series))
            for policy in series.candidates:
                policy.build(msgspec.structs.replace(trial, policy=policy).stand_ins)
            trial.plan(18).check(18)


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    figure = load_figure("9a")
    setting = figure.at(4, figure.series[0])
    assert (setting.instances, setting.extra, setting.k) == (12, 6, 2)
    assert (setting.queries_per_second, setting.shuffles) == (270, 4)


def test_figures_that_take_long_are_run_by_name_alone() -> None:
    apart = {name for name in FIGURES if load_figure(name).apart}
    assert apart > {"late", "disturbances", "validation", "validation-budgets"}


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        (SIMULATED, ('axis = "load"', 'axis = "colour"'), "does not say what colour is"),
        (SIMULATED, ("load = 0.6 }", "load = 1, zzz = 1 }"), "unknown field `zzz`"),
        (SIMULATED, ("instances = 4", "instances = 0"), "instances: Expected `int` >= 1"),
        (SIMULATED, ("instances = 4", "tenant = 19"), "cannot each share a machine with one of 18"),
        (SIMULATED, ("instances = 4", "burst = {factor = 3, length = 30}"), "make length shorter"),
        (SIMULATED, ("equal-resources", "equal"), "there is no policy .equal."),
        (SIMULATED, ("[[series]]", "[[series"), "is not TOML: .* .at line 9"),
        (SIMULATED, ("warm_up = 100", "real = [2]"), "real names point 2; there are"),
        (
            SIMULATED,
            ("[0.5, 0.9]", "[0.5, 1.5]"),
            "hedge_quantile must be a number, above 0 and below 1",
        ),
        (SIMULATED, ("hedge_quantile = [", "copies = ["), "not an option of the policy hedging"),
        (SIMULATED, ("equal resources", "hedging, tuned"), "two series have one label"),
        (SWEPT, ("k = [2, 4]", "k = [2, 400]"), "k: Expected `int` <= 9"),
    ],
)
def test_a_file_that_is_no_figure_is_refused(
    text: str, change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        written(tmp_path, text.replace(*change))


def test_a_swept_series_is_one_for_each_combination(tmp_path: Path) -> None:
    figure = written(tmp_path, SWEPT)
    assert len(figure.series) == 1 + 2 * 2 * 2
    last = figure.series[-1]
    assert last.label == "hedging, tuned (k=4, hedge_quantile=0.9, dispatch=latency-aware)"
    assert last.candidates[0].options == {"hedge_budget": 1.0, "hedge_quantile": 0.9}
    assert figure.at(1, last).k == 4


# Settings

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


def test_kills_and_neighbours_follow_from_the_seed() -> None:
    setting = Setting(kill_every=2.0, tenant=5, rate=10)
    plan = setting.plan(0, 600, 18)
    assert [kill.at for kill in plan.kills] == [2.0 * (i + 1) for i in range(30)]
    assert len({kill.worker for kill in plan.kills}) > 5
    assert plan.neighbours is not None
    assert len(set(plan.neighbours.workers)) == 5
    fewer = setting.plan(0, 600, 12)
    fewer.check(12)
    assert fewer.kills == tuple(kill for kill in plan.kills if kill.worker < 12)


def test_a_load_is_a_share_of_what_instances_carry_on_average() -> None:
    setting = Setting(load=0.5, service=LogNormal(0.02, 1.0))
    assert setting.queries_per_second == pytest.approx(0.5 * 12 / (0.02 * exp(0.5)))
    alike, unequal = (trial_of(load=0.5, faults={"generations": each}) for each in ((), (1.0, 2.0)))
    assert unequal.setting.queries_per_second == pytest.approx(
        alike.setting.queries_per_second * 0.75
    )
    assert trial_of(burst=BURST).arrivals()[-1] < trial_of().arrivals()[-1]


# Trials


def test_a_run_in_which_generator_or_server_was_late_is_invalid() -> None:
    setting = Setting()
    row: dict[str, float | None] = {"send delay": 0.5, "lag": 1.0}
    assert not why_invalid(TrialResult(row, ()), setting)
    late = TrialResult(row | {"send delay": 1.5}, ())
    assert why_invalid(late, setting) == "the load generator was late"
    busy = TrialResult(row | {"lag": 3.0}, ())
    assert why_invalid(busy, setting) == "the server was its own bottleneck"


def trials_of(
    run: Callable[[Trial], TrialResult], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Trials:
    """Trials of which each is run by this function."""
    monkeypatch.setattr(reproduce, "simulate_trial", run)
    monkeypatch.setattr(reproduce, "run_real", AsyncMock(side_effect=lambda trial, _: run(trial)))
    monkeypatch.setattr(results, "ProcessPoolExecutor", partial(ThreadPoolExecutor, 1))
    return Trials(folder)


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
    by_options = ALIKE | {(0.9, "latency-aware"): result}
    ran: list[Trial] = []

    def run(trial: Trial) -> TrialResult:
        ran.append(trial)
        hedged = trial.policy.options.get("hedge_quantile", 0.0)
        return by_options.get((hedged, str(trial.policy.dispatch)), of(70, 80))

    long = SIMULATED.replace("simulated_queries = 1000", "simulated_queries = 1000000") + change
    figure = written(tmp_path, long)
    cells = run_figure(figure, trials_of(run, tmp_path, monkeypatch), 0, real=[0])
    tuning = [trial for trial in ran if trial.queries == TUNING]
    assert len(tuning) == 2 * 2 * 2
    assert {(t.mode, t.policy.options["hedge_budget"]) for t in tuning} == {("simulated", 1.0)}
    at = [(cell.trial.mode, cell.point, cell.series.policy["name"]) for cell in cells]
    policies = ("equal-resources", "hedging")
    places = [("real", 0), ("simulated", 0), ("simulated", 1)]
    assert at == [(*place, policy) for place in places for policy in policies]
    for cell in cells[1::2]:
        assert cell.trial.policy.options == {"hedge_budget": 1.0, "hedge_quantile": quantile}
        assert cell.trial.policy.dispatch == rule
        assert cell.label == f"hedging, tuned (hedge_quantile={quantile}, dispatch={rule})"


# The command


@pytest.mark.slow
def test_it_writes_rows_and_pictures_and_reuses_earlier_runs(
    lab_here: Here, tmp_path: Path
) -> None:
    written(tmp_path, SIMULATED)
    places = ("--out", tmp_path / "out", "--work", tmp_path / "work")
    command = ("latency", "--figure", tmp_path / "mine.toml", "--simulate", *places)
    done = lab_here(*command)
    assert done.returncode == 0, done.stderr
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.json")}
    assert len(kept) == 2 * (1 + 4), "the best of four is one of those that were tried"
    result = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert result["command"].startswith("parm-lab latency --figure")
    assert result["queries"] == {"real": 2000, "simulated": 1000}
    at = [(row["load"], row["policy"][:7], row["run"]) for row in result["rows"]]
    assert at == [
        (load, policy, "simulated") for load in ("0.3", "0.6") for policy in ("equal r", "hedging")
    ]
    for row in result["rows"]:
        assert 0 < row["p50"] <= row["p99"] <= row["p99.9"]
        assert row["failed"] == 0
    assert (tmp_path / "out" / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert lab_here(*command).returncode == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}


# Validation


def test_errors_are_shares_of_real_latencies() -> None:
    def result(p50: float, tail: float) -> TrialResult:
        latencies = np.full(1000, p50 / 1e3)
        latencies[-20:] = tail / 1e3
        return result_of(latencies, 0, 0, 0.025)

    row = off(result(25, 100), result(26, 84))
    assert row["p99 off"] == pytest.approx(-0.16)


REAL = """
title = "Small"
axis = "load"
points = [{ load = 0.6 }]
warm_up = 100
simulated_queries = 100
[setting]
instances = 2
shuffles = 0
service = { type = "constant", seconds = 0.01 }
kill_every = 100
nodes = 2
tenant = 3
burst = { factor = 3, every = 1, length = 0.5 }
[setting.faults]
generations = [1, 3]
pauses = { mean_between = 5, length = { type = "constant", seconds = 0.1 }, nodes = 2 }
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
    written(tmp_path, REAL)
    done = lab_here(
        "validation", "--figure", tmp_path / "mine.toml", "--queries", "100",
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert [row["policy"] for row in result["rows"]] == ["no redundancy", "adaptive parity"]
    assert all(row["p50 real"] > 10 for row in result["rows"])
    assert result["overheads"][0]["held"] >= 0
