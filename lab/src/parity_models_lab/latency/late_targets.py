"""What late binding is to reach against hedging at its best, and what it may cost."""

from collections.abc import Iterator
from functools import partial
from operator import le
from typing import NamedTuple

from parity_models.simulation.trial import Mode, TrialResult
from parity_models_lab.latency.frontier import PERCENTILES
from parity_models_lab.latency.judging import (
    HEDGING,
    NO_MORE_FAILED,
    NOT_RUN,
    SLACK,
    Ratio,
    asked,
    at_least,
    by_load,
    hedging_at,
    hedging_over,
    is_hedging,
    over,
    result_at,
    series_over,
)
from parity_models_lab.latency.reproduce_latency import FigureResult
from parity_models_lab.target import Target

LATE = "late"
"""The figure."""

FIFTH = "adaptive, a backup of a fifth"
HALF = "adaptive, a backup of a half"
GATED = "adaptive, a backup of a fifth, gated"
PARITY = "adaptive, parity"


class Wanted(NamedTuple):
    """How many times as long as the series `label` hedging is to take, at loads `low` to `high`."""

    label: str
    mode: Mode
    low: float
    high: float
    p99: float
    p999: float


WANTED = (
    Wanted(FIFTH, Mode.REAL, 0.5, 0.5, 1.4, 1.4),
    Wanted(FIFTH, Mode.REAL, 0.9, 0.9, 1.4, 1.3),
    Wanted(HALF, Mode.REAL, 0.5, 0.5, 1.2, 1.25),
    Wanted(HALF, Mode.REAL, 0.9, 0.9, 1.25, 1.08),
    Wanted(FIFTH, Mode.SIMULATED, 0.0, 0.7, 1.6, 1.25),
    Wanted(FIFTH, Mode.SIMULATED, 0.9, 0.9, 1.35, 1.12),
    Wanted(HALF, Mode.SIMULATED, 0.0, 0.7, 1.3, 1.12),
    Wanted(GATED, Mode.REAL, 0.0, 0.7, 1.3, 1.18),
    Wanted(GATED, Mode.REAL, 0.9, 0.9, 1.25, 1.08),
    Wanted(GATED, Mode.SIMULATED, 0.0, 0.7, 1.3, 1.18),
    Wanted(GATED, Mode.SIMULATED, 0.9, 0.9, 1.25, 1.08),
)

GAP = {0.5: 14.0, 0.9: 5.0}
"""How many times smaller the gap is to be for real than equal resources', by load."""

STALL = 1.3
"""How many times hedging's p99.9 is to be that of parity where a node stands still."""

OVERLOAD = 1.1
"""A load at which redundant work is to cost nothing."""

ALONE = "adaptive parity"
"""The series, or family of series, of parity without a backup in other figures."""


def late_binding(result: FigureResult) -> Iterator[Target]:
    """The targets of the figure `late`."""
    for wanted in WANTED:
        yield from _against_hedging(result, wanted)
    yield from _gaps(result)
    for label in (FIFTH, HALF, GATED, PARITY):
        for mode in Mode:
            yield _busy(result, label, mode)
        yield from _overload(result, label)


def node_stall(result: FigureResult) -> Iterator[Target]:
    """Parity alone where all instances of a node or rack stand still at once (the figure
    `correlated`), at each such point, in each mode that it is run in."""
    experiment = result.plan.experiment
    for point, name in enumerate(experiment.labels):
        setting = experiment.at(point, experiment.series[0])
        if not (setting.nodes and setting.pause_every):
            continue
        for mode in Mode:
            if mode is Mode.SIMULATED or asked(result, mode, point, ALONE):
                ratio = hedging_over(result, ALONE, mode, point, "p999_ms")
                what = f"p99.9 of hedging at its best / {ALONE}, {name}, {mode}"
                yield at_least(what, STALL, ratio)
                yield _no_dearer(result, mode, point)


def _no_dearer(result: FigureResult, mode: Mode, point: int) -> Target:
    """In units; these are not counted in real runs, whose busy time is compared instead."""
    cost, said = ("busy_ms", "busy ms") if mode is Mode.REAL else ("work", "units")
    what = f"{said} a query of {ALONE}, {result.plan.experiment.labels[point]}, {mode}"
    here = result_at(result, ALONE, mode, point)
    ours = None if here is None else getattr(here, cost)
    theirs = [getattr(each, cost) for each in hedging_at(result, mode, point)]
    if ours is None or not theirs or None in theirs:
        return Target(what, "hedging's at most", NOT_RUN, None)
    least = min(theirs)
    return Target(what, f"hedging's at most: {least:.2f}", f"{ours:.2f}", ours <= least)


def parity_alone(result: FigureResult) -> Iterator[Target]:
    """Parity without a backup is nowhere worse than hedging that costs no more (the figure
    `cost-frontier`): in units, and in the time that instances are busy."""
    for cost, said in (("work", "with no more units"), ("busy_ms", "busy for no longer")):
        yield _nowhere_worse(result, cost, f"p99.9 of hedging {said} / {ALONE}, by load, simulated")


def _nowhere_worse(result: FigureResult, cost: str, what: str) -> Target:
    """Each swept series of parity is compared with the best of the hedging that costs no more on as
    many instances; the worst of each load is told. Where no hedging is as cheap there is nothing to
    compare with."""
    wanted = f"1x or more everywhere, {NO_MORE_FAILED}"
    told: list[str] = []
    compared: list[Ratio] = []
    for point, load in enumerate(result.plan.experiment.xs):
        parity = [line for line in result.lines if line.family == ALONE]
        hedging = [line for line in result.lines if is_hedging(line.label)]
        ours, theirs = (
            [
                (line.instances[point], here)
                for line in lines
                if (here := line.simulated[point]) and getattr(here, cost) is not None
            ]
            for lines in (parity, hedging)
        )
        if not (ours and theirs) or len(ours + theirs) < len(parity + hedging):
            return Target(what, wanted, NOT_RUN, None)
        ratios = [
            over(cheap, here, "p999_ms")
            for instances, here in ours
            if (
                cheap := [
                    each
                    for others, each in theirs
                    if others == instances and getattr(each, cost) <= getattr(here, cost)
                ]
            )
        ]
        worst = min(ratios, key=lambda each: (each.more_failed <= 0, each.times), default=None)
        if worst is None:
            told.append(f"{load:.0%}: nothing to compare, no hedging is as cheap")
        else:
            told.append(f"{load:.0%}: {worst} at worst ({len(ratios)} of {len(ours)} compared)")
        compared += ratios
    met = all(each.times >= 1 and each.more_failed <= 0 for each in compared) if compared else None
    return Target(what, wanted, "; ".join(told), met)


def _against_hedging(result: FigureResult, wanted: Wanted) -> Iterator[Target]:
    for (name, of), times in zip(PERCENTILES.items(), (wanted.p99, wanted.p999), strict=True):
        ratios = {
            load: hedging_over(result, wanted.label, wanted.mode, point, of)
            for point, load in enumerate(result.plan.experiment.xs)
            if wanted.low - SLACK <= load <= wanted.high + SLACK
            and asked(result, wanted.mode, point, *HEDGING, wanted.label)
        }
        what = f"{name} of hedging at its best / {wanted.label}, {wanted.mode}"
        yield by_load(what, f"{times:g}x or more, {NO_MORE_FAILED}", ratios, partial(le, times))


def _gaps(result: FigureResult) -> Iterator[Target]:
    for load, times in GAP.items():
        for point, x in enumerate(result.plan.experiment.xs):
            if abs(x - load) < SLACK:
                equal = result.lines[0].label
                shrinks = series_over(result, equal, FIFTH, Mode.REAL, point, "gap_ms")
                what = f"gap of equal resources / {FIFTH} at {load:.0%} load, real"
                yield at_least(what, times, shrinks)


def _busy(result: FigureResult, label: str, mode: Mode) -> Target:
    ratios = {
        load: _busy_over(
            result_at(result, label, mode, point),
            result_at(result, result.lines[0].label, mode, point),
        )
        for point, load in enumerate(result.plan.experiment.xs)
        if asked(result, mode, point, label)
    }
    what = f"busy time of {label} / equal resources', by load, {mode}"
    return by_load(what, "1x at most", ratios, lambda times: times <= 1)


def _busy_over(here: TrialResult | None, equal: TrialResult | None) -> Ratio | None:
    if not (here and here.busy_ms and equal and equal.busy_ms):
        return None
    return Ratio(here.busy_ms / equal.busy_ms)


def _overload(result: FigureResult, label: str) -> Iterator[Target]:
    """At a load beyond what there is room for, in everything."""
    for point, load in enumerate(result.plan.experiment.xs):
        here = result_at(result, label, Mode.SIMULATED, point)
        equal = result_at(result, result.lines[0].label, Mode.SIMULATED, point)
        if abs(load - OVERLOAD) > SLACK:
            continue
        what = f"{label} / equal resources at {load:.0%} load, simulated"
        wanted = f"1x at most, {NO_MORE_FAILED}"
        if here is None or equal is None:
            yield Target(what, wanted, NOT_RUN, None)
            continue
        ratios = {
            name: getattr(here, of) / getattr(equal, of)
            for name, of in {"p50": "p50_ms", **PERCENTILES}.items()
        }
        more = here.errors - equal.errors
        measured = ", ".join(f"{name} {ratio:.4g}x" for name, ratio in ratios.items())
        met = max(ratios.values()) <= 1 and more <= 0
        yield Target(what, wanted, f"{measured}, {more:+d} failed", met)
