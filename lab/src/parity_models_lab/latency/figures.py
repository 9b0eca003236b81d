"""Pictures of latency experiments: along an axis, and against the time that instances are busy."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, ScalarFormatter

from parity_models_lab.latency.experiment import Experiment
from parity_models_lab.latency.trial import SHARES, TrialResult
from parity_models_lab.plots import FAINT, INK, PALETTE, save, style

NOTE = (
    "Lines are simulated, marks are real runs; p50 solid and round, p99.9 dashed and triangular. "
    "Distributions: real ones solid, simulated ones dashed beside them."
)
COST_NOTE = "Simulated; each mark is one setting of a policy's options."


@dataclass(frozen=True)
class Line:
    """A series: results by position on the axis, None where there is none.

    `labels` name it at each position, with its tuned options there. Lines that differ in one
    policy's options alone are of one `family`.
    """

    label: str
    simulated: Sequence[TrialResult | None]
    real: Sequence[TrialResult | None]
    labels: Sequence[str] = ()
    family: str = ""


def plot_experiment(path: Path, experiment: Experiment, lines: Sequence[Line], cdf_at: int) -> None:
    """Write a PNG: p50 (solid) and p99.9 (dashed) along the axis, and distributions at one point.

    Lines are simulated, markers are real runs; where points are words, dashes are simulated. The
    distributions are those at position `cdf_at`.
    """
    axis, xs, labels = experiment.axis, experiment.xs, experiment.labels
    joined = not experiment.in_words
    with style():
        figure = Figure(figsize=(13.5, 4.8), dpi=140, layout="constrained")
        along, across = figure.subplots(1, 2, width_ratios=(1.35, 1))
        for line, colour in zip(lines, cycle(PALETTE), strict=False):
            _draw_line(along, xs, line, colour, joined=joined)
            _draw_distribution(across, line, cdf_at, colour)
        along.set_yscale("log")
        along.yaxis.set_major_formatter(ScalarFormatter())
        along.yaxis.set_minor_formatter(ScalarFormatter())
        along.tick_params(axis="y", which="both", labelsize=8)
        along.set_xticks(xs, labels)
        along.set_xlabel(axis)
        along.set_ylabel("latency in ms")
        along.set_title(experiment.title, loc="left", fontweight="bold")
        figure.legend(
            *along.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=8,
            frameon=False,
        )
        across.set_yscale("log")
        across.set_ylim(2e-4, 1)
        across.yaxis.set_major_locator(FixedLocator([1, 0.1, 0.01, 0.001]))
        across.yaxis.set_major_formatter(FixedFormatter(["100 %", "10 %", "1 %", "0.1 %"]))
        across.yaxis.set_minor_locator(NullLocator())
        across.set_xlim(left=0)
        across.set_xlabel(f"latency in ms, at {axis} = {labels[cdf_at]}")
        across.set_title("share of queries that took longer", loc="left")
        for axes in (along, across):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
        save(figure, path, NOTE)


def _draw_line(axes: Axes, xs: Sequence[float], line: Line, colour: str, *, joined: bool) -> None:
    for results, look, of in (
        (line.simulated, "-" if joined else "_", "p50_ms"),
        (line.simulated, "--" if joined else "_", "p999_ms"),
        (line.real, "o", "p50_ms"),
        (line.real, "^", "p999_ms"),
    ):
        here = [(x, getattr(y, of)) for x, y in zip(xs, results, strict=True) if y is not None]
        size = 16 if look == "_" else None
        axes.plot([x for x, _ in here], [y for _, y in here], look, color=colour, ms=size, mew=2)
    axes.plot([], [], "-", color=colour, label=line.label)


def _draw_distribution(axes: Axes, line: Line, at: int, colour: str) -> None:
    for result, look, width in (
        (line.simulated[at], "--" if line.real[at] else "-", 1.0),
        (line.real[at], "-", 1.8),
    ):
        if result is not None:
            axes.plot(result.quantiles_ms, 1 - np.asarray(SHARES), look, color=colour, lw=width)


# Tail latency against busy time

PERCENTILES = {"p99": "p99_ms", "p99.9": "p999_ms"}
MARKS = "o^sDvP*X<>ph"

HIGHEST, DEAREST = 1.5, 100
"""The limits of the axes: times the first series' latency, and % of extra busy time. Beyond them
a series has collapsed, or costs more than twice as much."""


@dataclass(frozen=True)
class Spot:
    """A series at a point: `extra` is its busy time beyond the first series', as a share of it."""

    line: Line
    extra: float
    ms: float


def spots(lines: Sequence[Line], point: int, of: str) -> list[Spot]:
    """Return the simulated series at a point, by the field `of` of their results.

    Series that fail more queries than the first one are left out: unanswered queries are in no
    percentile.
    """
    first = lines[0].simulated[point]
    if first is None or not first.busy_ms:
        return []
    return [
        Spot(line, here.busy_ms / first.busy_ms - 1, getattr(here, of))
        for line in lines
        if (here := line.simulated[point]) is not None
        and here.busy_ms is not None
        and here.errors <= first.errors
    ]


def frontier(of: Sequence[Spot]) -> list[Spot]:
    """Return the spots that no other is both cheaper and faster than, the cheapest first."""
    best: list[Spot] = []
    for spot in sorted(of, key=lambda each: (each.extra, each.ms)):
        if not best or spot.ms < best[-1].ms:
            best.append(spot)
    return best


def plot_frontier(path: Path, experiment: Experiment, lines: Sequence[Line]) -> None:
    """Write a PNG with a column for each of the axis' points and a row for each percentile.

    Lines of one family have one mark; the frontier is drawn as steps.
    """
    axis, labels = experiment.axis, experiment.labels
    with style():
        figure = Figure(figsize=(4 * len(labels) + 2, 7), dpi=140, layout="constrained")
        panels = figure.subplots(len(PERCENTILES), len(labels), squeeze=False, sharex="col")
        for row, (name, of) in zip(panels, PERCENTILES.items(), strict=True):
            for point, axes in enumerate(row):
                _draw_costs(axes, lines, point, of)
            row[0].set_ylabel(f"{name} in ms")
        for point, label in enumerate(labels):
            panels[0][point].set_title(f"{axis} = {label}", loc="left")
            panels[-1][point].set_xlabel("extra busy time, in % of equal resources'")
        figure.legend(
            *panels[0][0].get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=8,
            edgecolor="none",
        )
        figure.suptitle(experiment.title, x=0.01, ha="left", fontweight="bold")
        save(figure, path, COST_NOTE)


def _draw_costs(axes: Axes, lines: Sequence[Line], point: int, of: str) -> None:
    there = spots(lines, point, of)
    families = dict.fromkeys(line.family for line in lines)
    for family, colour, mark in zip(families, cycle(PALETTE), cycle(MARKS), strict=False):
        here = [spot for spot in there if spot.line.family == family]
        xs, ys = [100 * spot.extra for spot in here], [spot.ms for spot in here]
        axes.plot(xs, ys, mark, color=colour, markersize=5, label=family)
    best = frontier(there)
    xs, ys = [100 * spot.extra for spot in best], [spot.ms for spot in best]
    axes.step(xs, ys, where="post", color=INK, linewidth=0.8, label="frontier")
    axes.set_yscale("log")
    if there:
        axes.set_ylim(top=HIGHEST * there[0].ms)
        axes.set_xlim(right=min(DEAREST, axes.get_xlim()[1]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
