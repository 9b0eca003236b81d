"""What this project set out to reach, and what the figures say: computed, never typed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parity_models.lab.latency.figures import Line
from parity_models.lab.latency.reproduce_latency import FigureResult
from parity_models.lab.latency.trial import Mode, TrialResult

ADAPTIVE = "adaptive parity"
SHARED = "parity, shared pool"
PUBLISHED = "parity, as published"
HEDGING = "hedging"

NOT_RUN = "not run"

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
        ("load", _over_load),
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
    return Target(what, "", NOT_RUN, None)


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
    baseline = result.lines[0].label
    for label in (PUBLISHED, ADAPTIVE):
        if _asked(result, Mode.REAL, point, baseline, label):
            equal = _at(result, baseline, Mode.REAL, point)
            here = _at(result, label, Mode.REAL, point)
            shrinks = equal.gap_ms / here.gap_ms if equal and here else None
            yield _at_least(f"gap of equal resources / {label}, {where}, real", times, shrinks)


def _against_hedging(result: FigureResult) -> Iterator[Target]:
    for mode in Mode:
        ratios = {
            load: _tails(result, HEDGING, ADAPTIVE, mode, point)
            for point, load in enumerate(result.plan.experiment.xs)
            if _asked(result, mode, point, HEDGING, ADAPTIVE)
        }
        if not ratios:
            continue
        what = f"p99.9 of hedging / {ADAPTIVE}, by load, {mode}"
        yield _by_load(what, "above 1x everywhere", ratios, lambda ratio: ratio > 1)
        for load, ratio in ratios.items():
            if abs(load - 0.5) < SLACK:
                yield _at_least(f"p99.9 of hedging / {ADAPTIVE} at 50 % load, {mode}", 1.25, ratio)


def _over_load(result: FigureResult) -> Iterator[Target]:
    yield from _no_collapse(result)
    yield from _against_the_best(result)


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
    baseline = result.lines[0].label
    for point, load in enumerate(xs):
        if abs(load - 1) > SLACK:
            continue
        for mode in Mode:
            for label in (SHARED, ADAPTIVE):
                if _asked(result, mode, point, baseline, label):
                    what = f"p99.9 of equal resources / {label} at 100 % load, {mode}"
                    yield _at_least(what, 1.2, _tails(result, baseline, label, mode, point))


def _against_the_best(result: FigureResult) -> Iterator[Target]:
    """All policies but adaptive parity are fixed. Those that fail more queries than it does are
    left out: the queries that waited longest are not among their answers."""
    ratios: dict[float, float | None] = {}
    for point, load in enumerate(result.plan.experiment.xs):
        here = _at(result, ADAPTIVE, Mode.SIMULATED, point)
        if here is None:
            continue
        fixed = [
            other.p999_ms
            for line in result.lines
            if line.label != ADAPTIVE
            and (other := line.simulated[point]) is not None
            and other.errors <= here.errors
        ]
        ratios[load] = here.p999_ms / min(fixed) if fixed else None
    what = f"p99.9 of {ADAPTIVE} / the best fixed policy, by load, simulated"
    yield _by_load(what, "1.10x at most", ratios, lambda ratio: ratio <= 1.1)


def _kills(result: FigureResult) -> Iterator[Target]:
    wanted = "0 failed, p99.9 at most 2x undisturbed"
    for mode in Mode:
        for line in result.lines:
            calm = _at(result, line.label, mode, 0)
            for point, every in enumerate(result.plan.experiment.xs):
                if not every or "parity" not in line.label:
                    continue
                if not all(_asked(result, mode, each, line.label) for each in (0, point)):
                    continue
                what = f"{line.label}, kill -9 every {every:g} s, {mode}"
                here = _at(result, line.label, mode, point)
                if calm is None or here is None:
                    yield Target(what, wanted, NOT_RUN, None)
                    continue
                ratio = here.p999_ms / calm.p999_ms
                measured = f"{here.errors} failed, {ratio:.2f}x"
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
            what = f"median of {label} / equal resources, worst of all figures, {mode}"
            worst, where = max(ratios, default=(None, ""))
            measured = NOT_RUN if worst is None else f"{worst:.2f}x ({where})"
            yield Target(what, "1.05x at most", measured, None if worst is None else worst <= 1.05)


def _send_error(results: Sequence[FigureResult]) -> Iterator[Target]:
    late = [
        (here.send_delay_p99_ms, result.plan.name)
        for result in results
        for line in result.lines
        for here in line.real
        if here is not None and here.send_delay_p99_ms is not None
    ]
    what = "the load generator's send error at p99, worst of all real runs"
    worst, where = max(late, default=(None, ""))
    measured = NOT_RUN if worst is None else f"{worst:.2f} ms ({where})"
    yield Target(what, "below 1 ms", measured, None if worst is None else worst < 1)


def _at_least(what: str, times: float, ratio: float | None) -> Target:
    wanted = f"{times:g}x or more"
    if ratio is None:
        return Target(what, wanted, NOT_RUN, None)
    return Target(what, wanted, f"{ratio:.2f}x", ratio >= times)


def _by_load(
    what: str, wanted: str, ratios: Mapping[float, float | None], met: Callable[[float], bool]
) -> Target:
    run = {load: ratio for load, ratio in ratios.items() if ratio is not None}
    if not run:
        return Target(what, wanted, NOT_RUN, None)
    measured = ", ".join(f"{load:.0%}: {ratio:.2f}x" for load, ratio in run.items())
    return Target(what, wanted, measured, all(met(ratio) for ratio in run.values()))


def _tails(result: FigureResult, above: str, below: str, mode: Mode, point: int) -> float | None:
    """p99.9 of the series `above` / that of `below`; None unless both were run."""
    upper, lower = (_at(result, label, mode, point) for label in (above, below))
    return upper.p999_ms / lower.p999_ms if upper and lower else None


def _asked(result: FigureResult, mode: Mode, point: int, *labels: str) -> bool:
    """Are there these series, and are they run in this mode, unless all is simulated?"""
    plan = result.plan
    series = [each for each in plan.experiment.series if each.label in labels]
    return len(series) == len(labels) and (
        mode is Mode.SIMULATED or all(plan.is_real(each, point) for each in series)
    )


def _at(result: FigureResult, label: str, mode: Mode, point: int) -> TrialResult | None:
    line = result.line(label)
    if line is None:
        return None
    return (line.real if mode is Mode.REAL else line.simulated)[point]
