"""The picture of a latency experiment: percentiles along its axis, and distributions."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from parity_models_lab.latency.reproduce_latency import Line, Plan
from parity_models_lab.latency.trial import SHARES, Mode
from parity_models_lab.plots import FAINT, PALETTE, save, style, tail_axes

NOTE = (
    "Lines are simulated, marks are real runs; p50 solid and round, p99.9 dashed and triangular. "
    "Distributions: real ones solid, simulated ones dashed beside them."
)


def draw(plan: Plan, lines: Sequence[Line], path: Path) -> None:
    """Write a PNG: p50 (solid) and p99.9 (dashed) along the axis, and distributions at one point.

    Lines are simulated, markers are real runs; where points are words, dashes are simulated. The
    distributions are those at the last point that was run for real, if any.
    """
    experiment = plan.experiment
    axis, xs, labels = experiment.axis, experiment.xs, experiment.labels
    joined = not experiment.in_words
    points = range(len(labels))
    real = [each for each in points if any(line.results[Mode.REAL][each] for line in lines)]
    cdf_at = (real or points)[-1]
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
        tail_axes(across, 2e-4)
        across.set_xlim(left=0)
        across.set_xlabel(f"latency in ms, at {axis} = {labels[cdf_at]}")
        across.set_title("share of queries that took longer", loc="left")
        along.spines[["top", "right"]].set_visible(False)
        for axes in (along, across):
            axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
        save(figure, path, NOTE)


def _draw_line(axes: Axes, xs: Sequence[float], line: Line, colour: str, *, joined: bool) -> None:
    for mode, look, of in (
        (Mode.SIMULATED, "-" if joined else "_", "p50_ms"),
        (Mode.SIMULATED, "--" if joined else "_", "p999_ms"),
        (Mode.REAL, "o", "p50_ms"),
        (Mode.REAL, "^", "p999_ms"),
    ):
        results = zip(xs, line.results[mode], strict=True)
        here = [(x, getattr(y, of)) for x, y in results if y is not None]
        size = 16 if look == "_" else None
        axes.plot([x for x, _ in here], [y for _, y in here], look, color=colour, ms=size, mew=2)
    axes.plot([], [], "-", color=colour, label=line.series.label)


def _draw_distribution(axes: Axes, line: Line, at: int, colour: str) -> None:
    simulated, real = (line.results[mode][at] for mode in (Mode.SIMULATED, Mode.REAL))
    for result, look, width in ((simulated, "--" if real else "-", 1.0), (real, "-", 1.8)):
        if result is not None:
            axes.plot(result.quantiles_ms, 1 - np.asarray(SHARES), look, color=colour, lw=width)
