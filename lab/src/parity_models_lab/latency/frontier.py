"""Tail latency against busy time: which series no other beats in both, and the picture of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from parity_models_lab.latency.figures import Line
from parity_models_lab.plots import FAINT, INK, PALETTE, save, style

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


def plot_frontier(
    path: Path, title: str, axis: str, labels: Sequence[str], lines: Sequence[Line], note: str
) -> None:
    """Write a PNG with a column for each of the axis' points and a row for each percentile.

    Lines of one family have one mark; the frontier is drawn as steps.
    """
    with style():
        figure = Figure(figsize=(4 * len(labels) + 2, 7), dpi=140, layout="constrained")
        panels = figure.subplots(len(PERCENTILES), len(labels), squeeze=False, sharex="col")
        for row, (name, of) in zip(panels, PERCENTILES.items(), strict=True):
            for point, axes in enumerate(row):
                _draw(axes, lines, point, of)
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
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        save(figure, path, note)


def _draw(axes: Axes, lines: Sequence[Line], point: int, of: str) -> None:
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
