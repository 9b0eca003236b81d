"""What this project set out to reach, and what the figures say: computed, never typed."""

from collections.abc import Callable, Iterator, Sequence

from parity_models.simulation.trial import Mode
from parity_models_lab.latency.figures import Line
from parity_models_lab.latency.frontier import PERCENTILES
from parity_models_lab.latency.judging import (
    HEDGING,
    NO_MORE_FAILED,
    NOT_RUN,
    SLACK,
    asked,
    at_least,
    by_load,
    hedging_over,
    result_at,
    series_over,
)
from parity_models_lab.latency.late_targets import LATE, late_binding, node_stall, parity_alone
from parity_models_lab.latency.no_regret import median_limits, no_regret
from parity_models_lab.latency.reproduce_latency import FigureResult
from parity_models_lab.target import Target

ADAPTIVE = "adaptive parity"
SHARED = "parity, shared pool"
PUBLISHED = "parity, as published"
GROWN = 2.0
"""A policy has collapsed where its median is so many times that at the lowest load: a queue has
built up that does not go away."""


def targets(results: Sequence[FigureResult]) -> list[Target]:
    """All targets, judged by those of the figures that are there."""
    by_name = {result.plan.name: result for result in results}
    judges: list[tuple[str, Callable[[FigureResult], Iterator[Target]]]] = [
        ("9a", _gap_at_middling_load),
        ("10", _gap_with_less_redundancy),
        ("hedging", _against_hedging),
        ("load", _over_load),
        ("kills", _kills),
        (LATE, late_binding),
        ("correlated", node_stall),
        ("cost-frontier", parity_alone),
    ]
    found = [
        target
        for name, judge in judges
        for target in (
            judge(by_name[name]) if name in by_name else [_unmeasured(f"figure `{name}`")]
        )
    ]
    return [*found, *no_regret(results), *_medians(results), *_send_error(results)]


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
        if asked(result, Mode.REAL, point, baseline, label):
            shrinks = series_over(result, baseline, label, Mode.REAL, point, "gap_ms")
            yield at_least(f"gap of equal resources / {label}, {where}, real", times, shrinks)


def _against_hedging(result: FigureResult) -> Iterator[Target]:
    for mode in Mode:
        for name, of in PERCENTILES.items():
            ratios = {
                load: hedging_over(result, ADAPTIVE, mode, point, of)
                for point, load in enumerate(result.plan.experiment.xs)
                if asked(result, mode, point, *HEDGING, ADAPTIVE)
            }
            if not ratios:
                continue
            what = f"{name} of hedging at its best / {ADAPTIVE}, by load, {mode}"
            wanted = f"above 1x everywhere, {NO_MORE_FAILED}"
            yield by_load(what, wanted, ratios, lambda times: times > 1)


def _over_load(result: FigureResult) -> Iterator[Target]:
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
                if asked(result, mode, point, baseline, label):
                    what = f"p99.9 of equal resources / {label} at 100 % load, {mode}"
                    ratio = series_over(result, baseline, label, mode, point, "p999_ms")
                    yield at_least(what, 1.2, ratio)


def _kills(result: FigureResult) -> Iterator[Target]:
    wanted = "0 failed, p99.9 at most 2x undisturbed"
    for mode in Mode:
        for line in result.lines:
            calm = result_at(result, line.label, mode, 0)
            for point, every in enumerate(result.plan.experiment.xs):
                if not every or "parity" not in line.label:
                    continue
                if not all(asked(result, mode, each, line.label) for each in (0, point)):
                    continue
                what = f"{line.label}, kill -9 every {every:g} s, {mode}"
                here = result_at(result, line.label, mode, point)
                if calm is None or here is None:
                    yield Target(what, wanted, NOT_RUN, None)
                    continue
                ratio = here.p999_ms / calm.p999_ms
                measured = f"{here.errors} failed, {ratio:.2f}x"
                yield Target(what, wanted, measured, not here.errors and ratio <= 2)


def _medians(results: Sequence[FigureResult]) -> Iterator[Target]:
    for mode in Mode:
        for label, limit in median_limits(results).items():
            ratios = [
                (here.p50_ms / equal.p50_ms, f"{result.plan.name} at {name}")
                for result in results
                for point, name in enumerate(result.plan.experiment.labels)
                if (here := result_at(result, label, mode, point)) is not None
                and (equal := result_at(result, result.lines[0].label, mode, point)) is not None
            ]
            what = f"median of {label} / equal resources, worst of all figures, {mode}"
            worst, where = max(ratios, default=(None, ""))
            measured = NOT_RUN if worst is None else f"{worst:.2f}x ({where})"
            met = None if worst is None else worst <= limit
            yield Target(what, f"{limit:g}x at most", measured, met)


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
