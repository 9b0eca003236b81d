"""What late binding is to reach: judged from the figure `late`, wherever its file is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from parity_models.simulation.trial import Emulation, TrialResult, result_of
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.figures import Line
from parity_models_lab.latency.judging import HEDGING
from parity_models_lab.latency.late_targets import FIFTH, late_binding, node_stall, parity_alone
from parity_models_lab.latency.reproduce_latency import PRESETS, FigureResult, Plan
from parity_models_lab.target import Target

LOADS = "{ load = 0.5 }, { load = 0.9 }, { load = 1.1 }"
STALLS = """
    { slow = "nothing", nodes = 3 },
    { slow = "a node stands still", nodes = 3, pause_every = 15 },
    { slow = "racks stand still", nodes = 50, pause_every = 15 },
"""


def result(p99: float, p999: float, busy: float = 30.0, errors: int = 0) -> TrialResult:
    found = result_of(np.full(1000, 0.025), errors, {"model": 1000}, work=1.1, busy_ms=busy)
    return msgspec.structs.replace(found, p99_ms=p99, p999_ms=p999, gap_ms=p999 - found.p50_ms)


Ran = Sequence[TrialResult | None]


def figure(
    tmp_path: Path, results: Mapping[str, Ran], points: str = LOADS, axis: str = "load"
) -> FigureResult:
    """The figure `late` with these results, real and simulated alike."""
    series = "".join(
        f'[[series]]\nlabel = "{label}"\npolicy = {{ name = "equal-resources" }}\n'
        for label in results
    )
    (tmp_path / "late.toml").write_text(
        f'title = "Late"\naxis = "{axis}"\npoints = [{points}]\nreal = [0, 1]\n{series}'
    )
    name = str(tmp_path / "late.toml")
    plan = Plan(name, load_experiment(name), PRESETS["quick"], 0, Emulation.NOTHING)
    lines = (Line(label, here, here, instances=[18] * len(here)) for label, here in results.items())
    return FigureResult(plan, tuple(lines))


def judged(tmp_path: Path, ours: Ran) -> dict[tuple[str, str], Target]:
    results: dict[str, Ran] = {
        "equal resources": [result(100, 250), result(100, 250), result(300, 400)],
        HEDGING[0]: [result(70, 70), result(80, 100), result(400, 500)],
        HEDGING[1]: [result(60, 90), result(90, 120), result(400, 500)],
        FIFTH: ours,
    }
    found = late_binding(figure(tmp_path, results))
    return {(target.what, target.wanted): target for target in found}


def test_each_percentile_is_compared_with_the_better_of_the_two_hedgings(tmp_path: Path) -> None:
    found = judged(tmp_path, [result(40, 49), result(50, 80), result(300, 400)])
    what = f"p99 of hedging at its best / {FIFTH}, real"
    targets = [target for (name, _), target in found.items() if name == what]
    assert [target.measured for target in targets] == ["90%: 1.60x"]
    at_half = found[
        f"p99.9 of hedging at its best / {FIFTH}, simulated", "1.25x or more, no more failed"
    ]
    assert (at_half.measured, at_half.met) == ("50%: 1.43x", True)


def test_the_gap_is_compared_with_that_of_equal_resources(tmp_path: Path) -> None:
    found = judged(tmp_path, [result(40, 40), result(50, 80), result(300, 400)])
    assert found[
        f"gap of equal resources / {FIFTH} at 50% load, real", "14x or more, no more failed"
    ].met
    assert not found[
        f"gap of equal resources / {FIFTH} at 90% load, real", "5x or more, no more failed"
    ].met


@pytest.mark.parametrize(
    ("last", "met"),
    [
        (result(300, 400), True),
        (result(300, 401), False),
        (result(300, 400, errors=1), False),
    ],
)
def test_beyond_full_load_it_is_worse_in_nothing(
    last: TrialResult, met: bool, tmp_path: Path
) -> None:
    found = judged(tmp_path, [result(40, 40), result(50, 80), last])
    what = (f"{FIFTH} / equal resources at 110% load, simulated", "1x at most, no more failed")
    assert found[what].met is met


def test_instances_may_be_busy_for_no_longer_at_any_load(tmp_path: Path) -> None:
    ours = [result(40, 40, busy=29), result(50, 80, busy=31), result(300, 400, busy=30)]
    target = judged(tmp_path, ours)[
        f"busy time of {FIFTH} / equal resources', by load, simulated", "1x at most"
    ]
    assert (target.measured, target.met) == ("50%: 0.97x, 90%: 1.03x, 110%: 1.00x", False)


def test_what_was_not_run_is_not_judged(tmp_path: Path) -> None:
    results = {"equal resources": [result(100, 250)] * 3}
    assert {target.met for target in late_binding(figure(tmp_path, results))} == {None}


@pytest.mark.parametrize(("errors", "said"), [(0, ""), (1, " with 1 more failed")])
def test_who_fails_the_slowest_queries_does_not_pass(
    errors: int, said: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, [result(40, 40, errors=errors)] * 3)
    for what, wanted, ratio in (
        (f"p99.9 of hedging at its best / {FIFTH}, simulated", "1.25x or more", "50%: 1.75x"),
        (f"gap of equal resources / {FIFTH} at 50% load, real", "14x or more", "15.00x"),
    ):
        target = found[what, f"{wanted}, no more failed"]
        assert (target.measured, target.met) == (f"{ratio}{said}", not errors)


def test_hedging_that_fails_more_queries_than_other_hedging_is_not_its_best(
    tmp_path: Path,
) -> None:
    results = {
        "equal resources": [result(100, 250)] * 3,
        HEDGING[0]: [result(70, 100)] * 3,
        HEDGING[1]: [result(20, 30, errors=1)] * 3,
        FIFTH: [result(40, 50)] * 3,
    }
    wanted = "1.25x or more, no more failed"
    what = f"p99.9 of hedging at its best / {FIFTH}, simulated"
    found = {(each.what, each.wanted): each for each in late_binding(figure(tmp_path, results))}
    assert (found[what, wanted].measured, found[what, wanted].met) == ("50%: 2.00x", True)


def test_a_load_that_was_not_run_leaves_the_whole_unjudged(tmp_path: Path) -> None:
    whole, part = result(40, 49, busy=29), None
    found = judged(tmp_path, [whole, part, whole])
    busy = f"busy time of {FIFTH} / equal resources', by load"
    for mode in ("real", "simulated"):
        target = found[f"{busy}, {mode}", "1x at most"]
        assert (target.measured, target.met) == ("not run", None)


def test_loads_that_a_figure_does_not_run_for_real_are_not_missed(tmp_path: Path) -> None:
    found = judged(tmp_path, [result(40, 49, busy=29)] * 2 + [None])
    busy = f"busy time of {FIFTH} / equal resources', by load"
    assert found[f"{busy}, real", "1x at most"].measured == "50%: 0.97x, 90%: 0.97x"
    assert found[f"{busy}, simulated", "1x at most"].met is None


@pytest.mark.parametrize("missing", HEDGING)
def test_hedging_is_at_its_best_only_where_all_of_it_was_run(missing: str, tmp_path: Path) -> None:
    ran: dict[str, Ran] = {
        label: [result(100, 250)] * 3 for label in ("equal resources", *HEDGING, FIFTH)
    }
    found = late_binding(figure(tmp_path, ran | {missing: [None] * 3}))
    hedged = [target for target in found if "hedging" in target.what]
    assert {target.met for target in hedged} == {None}


def stalled(tmp_path: Path, hedging: Ran, tuned_for_p99: Ran, parity: Ran) -> dict[str, Target]:
    """By what the targets are, of the figure `correlated`."""
    ran: dict[str, Ran] = {"equal resources": [result(100, 250)] * 3, "adaptive parity": parity}
    ran |= dict(zip(HEDGING, (hedging, tuned_for_p99), strict=True))
    return {each.what: each for each in node_stall(figure(tmp_path, ran, STALLS, "slow"))}


def test_parity_is_compared_with_hedging_wherever_a_node_or_rack_stands_still(
    tmp_path: Path,
) -> None:
    hedging = [result(70, 130)] * 3
    good = stalled(tmp_path, hedging, hedging, [result(70, 100)] * 3)
    name = "p99.9 of hedging at its best / adaptive parity"
    assert {what for what in good if what.startswith(name)} == {
        f"{name}, a node stands still, simulated",
        f"{name}, a node stands still, real",
        f"{name}, racks stand still, simulated",
    }
    assert {target.met for target in good.values()} == {True}
    racks = [result(70, 100), result(70, 100), result(70, 101)]
    bad = stalled(tmp_path, hedging, hedging, racks)
    assert [each for each, found in bad.items() if not found.met] == [
        f"{name}, racks stand still, simulated"
    ]


def test_where_a_node_stands_still_parity_costs_no_more_than_any_hedging(tmp_path: Path) -> None:
    def costs(work: float, busy: float) -> list[TrialResult]:
        return [msgspec.structs.replace(result(70, 100, busy), work=work)] * 3

    found = stalled(tmp_path, costs(1.3, 34), costs(1.1, 31), costs(1.2, 32))
    units = found["units a query of adaptive parity, a node stands still, simulated"]
    assert (units.wanted, units.measured, units.met) == ("hedging's at most: 1.10", "1.20", False)
    busy = found["busy ms a query of adaptive parity, a node stands still, real"]
    assert (busy.wanted, busy.measured, busy.met) == ("hedging's at most: 31.00", "32.00", False)
    assert "units a query of adaptive parity, racks stand still, simulated" in found


def swept(tmp_path: Path, **ran: Ran) -> list[Target]:
    """The targets of the figure `cost-frontier`."""
    named: dict[str, Ran] = {"equal resources": [result(100, 250)] * 3}
    for name, results in ran.items():
        family, knob = name.rsplit("_", 1)
        named[f"{family.replace('_', ' ')} ({knob})"] = results
    found = figure(tmp_path, named)
    lines = [replace(line, family=line.label.partition(" (")[0]) for line in found.lines]
    return list(parity_alone(FigureResult(found.plan, tuple(lines))))


def ran(p999: float, work: float, busy: float = 30.0, errors: int = 0) -> TrialResult:
    return msgspec.structs.replace(result(50, p999, busy, errors), work=work)


def test_every_swept_parity_is_compared_with_hedging_that_costs_no_more(tmp_path: Path) -> None:
    hedging = {"hedging_a": [ran(90, 1.2, 33)] * 3, "hedging_b": [ran(70, 1.3, 34)] * 3}
    fine = [ran(80, 1.2, 33)] * 3
    (units, busy) = swept(tmp_path, **hedging, adaptive_parity_x=fine)
    loads = "50%: {0}; 90%: {0}; 110%: {0}"
    told = loads.format("1.12x at worst (1 of 1 compared)")
    assert (units.measured, units.met) == (busy.measured, busy.met) == (told, True)
    worse = [fine[0], ran(90, 1.3, 33), fine[0]]
    (units, busy) = swept(tmp_path, **hedging, adaptive_parity_x=fine, adaptive_parity_y=worse)
    assert "90%: 0.78x at worst (2 of 2 compared)" in units.measured
    assert (units.met, busy.met) == (False, True)


def test_hedging_on_more_instances_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = figure(
        tmp_path,
        {
            "equal resources": [result(100, 250)] * 3,
            "hedging": [ran(60, 1.2)] * 3,
            "hedging, fewer": [ran(90, 1.2)] * 3,
            "adaptive parity": [ran(80, 1.2)] * 3,
        },
    )
    lines = [
        replace(line, family=line.label, instances=[18 if line.label == "hedging" else 15] * 3)
        for line in found.lines
    ]
    for target in parity_alone(FigureResult(found.plan, tuple(lines))):
        assert "50%: 1.12x at worst (1 of 1 compared)" in target.measured
        assert target.met


def test_a_swept_parity_that_fails_more_queries_is_worse(tmp_path: Path) -> None:
    fails = [ran(50, 1.2, errors=2)] * 3
    targets = swept(tmp_path, hedging_a=[ran(90, 1.2)] * 3, adaptive_parity_x=fails)
    assert {target.met for target in targets} == {False}


def test_it_is_said_where_no_hedging_is_as_cheap_as_parity(tmp_path: Path) -> None:
    cheap, usual = ran(80, 1.1), ran(80, 1.2)
    ours = [usual, cheap, usual]
    units, _ = swept(tmp_path, hedging_a=[ran(90, 1.2)] * 3, adaptive_parity_x=ours)
    assert "90%: nothing to compare, no hedging is as cheap" in units.measured
    assert units.met
    units, _ = swept(tmp_path, hedging_a=[ran(90, 1.2)] * 3, adaptive_parity_x=[cheap] * 3)
    assert units.met is None
    units, _ = swept(
        tmp_path,
        hedging_a=[ran(90, 1.2)] * 3, adaptive_parity_x=ours, adaptive_parity_y=[usual] * 3,
    )  # fmt: skip
    assert "90%: 1.12x at worst (1 of 2 compared)" in units.measured


def test_a_swept_series_that_was_not_run_leaves_parity_alone_unjudged(tmp_path: Path) -> None:
    ours = [ran(80, 1.2), None, ran(80, 1.2)]
    targets = swept(tmp_path, hedging_a=[ran(90, 1.2)] * 3, adaptive_parity_x=ours)
    assert {(target.measured, target.met) for target in targets} == {("not run", None)}
