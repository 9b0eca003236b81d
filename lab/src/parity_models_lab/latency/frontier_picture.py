"""The picture of the frontier: p99 and p99.9 against the time that instances are busy for them."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from parity_models_lab.latency.figures import PALETTE, Line, save
from parity_models_lab.latency.frontier import PERCENTILES, frontier, spots
from parity_models_lab.plots import FAINT, INK

MARKS = "o^sDvP*X<>ph"

HIGHEST, DEAREST = 1.5, 100
"""What is drawn: up to so many times the first series' latency, and so many % of extra busy time.
What is beyond has collapsed, or costs more than twice."""


def plot_frontier(
    path: Path, title: str, axis: str, labels: Sequence[str], lines: Sequence[Line], note: str
) -> None:
    """Write a PNG: a column for each of the axis' points, a row for each percentile, simulated.

    Lines of one family have one mark; the frontier is drawn as steps.
    """
    with mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK}):
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
