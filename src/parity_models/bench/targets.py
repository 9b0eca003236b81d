"""What this project set out to reach, and what the figures say: computed, never typed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from parity_models.bench.figures import Line
from parity_models.bench.reproduce_latency import FigureResult
from parity_models.bench.trial import Mode, TrialResult

ADAPTIVE = "adaptive parity"
SHARED = "parity, shared pool"
PUBLISHED = "parity, as published"
HEDGING = "hedging"

GROWN = 2.0
"""A policy has collapsed where its median is so many times that at the lowest load: a queue has
built up that does not go away."""

SLACK = 1e-9
"""For loads that are meant to be equal."""


@dataclass(frozen=True)
class Target:
    """A claim, what is wanted and what was measured; `met` None where it was not measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None


def targets(results: Sequence[FigureResult]) -> list[Target]:
    """All targets, judged by those of the figures that are there."""
    by_name = {result.plan.name: result for result in results}
    judges: list[tuple[str, Callable[[FigureResult], Iterator[Target]]]] = [
        ("9a", _gap_at_middling_load),
        ("10", _gap_with_less_redundancy),
        ("hedging", _against_hedging),
        ("load", _no_collapse),
        ("kills", _kills),
    ]
    found = [
        target
        for name, judge in judges
        for target in (
            judge(by_name[name]) if name in by_name else [_unmeasured(f"figure `{name}`")]
        )
    ]
    return [*found, *_medians(results), *_send_error(results)]


def collapse(line: Line, axis: Sequence[float]) -> float | None:
    """The first value on the axis at which the simulated policy has collapsed, if it does.

    That is where queries fail, or the median is GROWN times the first one.
    """
    first = line.simulated[0]
    for x, result in zip(axis, line.simulated, strict=True):
        if first is None or result is None:
            continue
        if result.errors or result.p50_ms > GROWN * first.p50_ms:
            return x
    return None


def collapses(result: FigureResult) -> str:
    """In a sentence: which policy collapses at which load."""
    xs = result.plan.experiment.xs
    labels: dict[float | None, list[str]] = {}
    for line in result.lines:
        labels.setdefault(collapse(line, xs), []).append(line.label)
    parts = [f"At {load:.0%}: {'; '.join(labels[load])}." for load in sorted(filter(None, labels))]
    if None in labels:
        parts.append(f"Not up to {xs[-1]:.0%}: {'; '.join(labels[None])}.")
    return (
        f"Where policies collapse, simulated (queries fail, or the median is more than {GROWN:g} "
        f"times that at {xs[0]:.0%}): {' '.join(parts)}"
    )


def _unmeasured(what: str) -> Target:
    return Target(what, "", "not run", None)


def _gap_at_middling_load(result: FigureResult) -> Iterator[Target]:
    experiment = result.plan.experiment
    for point, label in enumerate(experiment.labels):
        load = experiment.at(point, experiment.series[0]).carried
        if 0.4 - SLACK <= load <= 0.6 + SLACK:
            where = f"k=2, {label} queries/s ({load:.0%} load)"
            yield from _gaps(result, point, where, 3)


def _gap_with_less_redundancy(result: FigureResult) -> Iterator[Target]:
    for point, k in enumerate(result.plan.experiment.xs):
        if k > 2:
            yield from _gaps(result, point, f"k={k:g}", 2)


def _gaps(result: FigureResult, point: int, where: str, times: int) -> Iterator[Target]:
    equal = result.lines[0].real[point]
    for label in (PUBLISHED, ADAPTIVE):
        here = _at(result, label, Mode.REAL, point)
        if here is not None and equal is not None:
            shrinks = equal.gap_ms / here.gap_ms
            what = f"gap of equal resources / {label}, {where}, real"
            yield Target(what, f"{times}x or more", f"{shrinks:.2f}x", shrinks >= times)


def _against_hedging(result: FigureResult) -> Iterator[Target]:
    for mode in Mode:
        ratios = {}
        for point, load in enumerate(result.plan.experiment.xs):
            hedged = _at(result, HEDGING, mode, point)
            here = _at(result, ADAPTIVE, mode, point)
            if hedged is not None and here is not None:
                ratios[load] = hedged.p999_ms / here.p999_ms
        if not ratios:
            continue
        measured = ", ".join(f"{load:.0%}: {ratio:.2f}x" for load, ratio in ratios.items())
        met = all(ratio > 1 for ratio in ratios.values())
        what = f"p99.9 of hedging / {ADAPTIVE}, by load, {mode}"
        yield Target(what, "above 1x everywhere", measured, met)
        for load, ratio in ratios.items():
            if abs(load - 0.5) < SLACK:
                what = f"p99.9 of hedging / {ADAPTIVE} at 50 % load, {mode}"
                yield Target(what, "1.25x or more", f"{ratio:.2f}x", ratio >= 1.25)


def _no_collapse(result: FigureResult) -> Iterator[Target]:
    xs = result.plan.experiment.xs
    for label in (SHARED, ADAPTIVE):
        line = result.line(label)
        if line is None:
            continue
        at = collapse(line, xs)
        measured = f"none up to {xs[-1]:.0%}" if at is None else f"at {at:.0%}"
        what = f"collapse of {label}, simulated"
        yield Target(what, "none up to 100%", measured, at is None or at > 1 + SLACK)
    for point, load in enumerate(xs):
        if abs(load - 1) > SLACK:
            continue
        for mode in Mode:
            equal = _at(result, result.lines[0].label, mode, point)
            for label in (SHARED, ADAPTIVE):
                here = _at(result, label, mode, point)
                if equal is not None and here is not None:
                    ratio = equal.p999_ms / here.p999_ms
                    what = f"p99.9 of equal resources / {label} at 100 % load, {mode}"
                    yield Target(what, "1.2x or more", f"{ratio:.2f}x", ratio >= 1.2)


def _kills(result: FigureResult) -> Iterator[Target]:
    experiment = result.plan.experiment
    for mode in Mode:
        for line in result.lines:
            calm = _at(result, line.label, mode, 0)
            for point, every in enumerate(experiment.xs):
                here = _at(result, line.label, mode, point)
                if not every or calm is None or here is None or "parity" not in line.label:
                    continue
                ratio = here.p999_ms / calm.p999_ms
                what = f"{line.label}, kill -9 every {every:g} s, {mode}"
                measured = f"{here.errors} failed, {ratio:.2f}x"
                wanted = "0 failed, p99.9 at most 2x undisturbed"
                yield Target(what, wanted, measured, not here.errors and ratio <= 2)


def _medians(results: Sequence[FigureResult]) -> Iterator[Target]:
    for mode in Mode:
        for label in (SHARED, ADAPTIVE):
            ratios = [
                (here.p50_ms / equal.p50_ms, f"{result.plan.name} at {name}")
                for result in results
                for point, name in enumerate(result.plan.experiment.labels)
                if (here := _at(result, label, mode, point)) is not None
                and (equal := _at(result, result.lines[0].label, mode, point)) is not None
            ]
            if ratios:
                worst, where = max(ratios)
                what = f"median of {label} / equal resources, worst of all figures, {mode}"
                yield Target(what, "1.05x at most", f"{worst:.2f}x ({where})", worst <= 1.05)


def _send_error(results: Sequence[FigureResult]) -> Iterator[Target]:
    late = [
        (here.send_delay_p99_ms, result.plan.name)
        for result in results
        for line in result.lines
        for here in line.real
        if here is not None and here.send_delay_p99_ms is not None
    ]
    if late:
        worst, where = max(late)
        what = "the load generator's send error at p99, worst of all real runs"
        yield Target(what, "below 1 ms", f"{worst:.2f} ms ({where})", worst < 1)


def _at(result: FigureResult, label: str, mode: Mode, point: int) -> TrialResult | None:
    line = result.line(label)
    if line is None:
        return None
    return (line.real if mode is Mode.REAL else line.simulated)[point]
