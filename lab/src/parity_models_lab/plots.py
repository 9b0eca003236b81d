"""Pictures: their style, and latency distributions."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

COLOURS = ("#c44e00", "#0068a8", "#2b8a3e", "#7b3fa0")
"""Distinguishable in print and by colour-blind readers."""
INK, FAINT = "#222222", "#8a8a8a"
PALETTE = (FAINT, *COLOURS, "#b8860b", "#c2185b", "#17817e", INK)


def style() -> AbstractContextManager[None]:
    """Set the fonts and colours of a picture while the context lasts."""
    return mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK})


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Write a picture, with a note below it."""
    width = round(figure.get_figwidth() * 13)
    figure.supxlabel(fill(note, width), fontsize=8, color=FAINT, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def tail_axes(axes: Axes, floor: float) -> None:
    """Prepare axes for shares of queries that took longer, from 1 down to `floor`."""
    axes.set_yscale("log")
    axes.set_ylim(floor, 1)
    axes.yaxis.set_major_locator(FixedLocator([1, 0.1, 0.01, 0.001]))
    axes.yaxis.set_major_formatter(FixedFormatter(["100 %", "10 %", "1 %", "0.1 %"]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def plot_latency(
    path: Path, latencies_ms: Mapping[str, NDArray[np.float64]], title: str, note: str
) -> None:
    """Write a PNG of the share of queries that took longer than x, on a logarithmic axis.

    `latencies_ms` (n,) by label; p50 and p99.9 of each are marked. `note` stands below.
    """
    with style():
        figure = Figure(figsize=(9, 5.2), dpi=140, layout="constrained")
        axes = figure.add_subplot()
        floor = 0.5 / max(len(values) for values in latencies_ms.values())
        longest = max(float(np.quantile(values, 0.9997)) for values in latencies_ms.values())
        for (label, values), colour in zip(latencies_ms.items(), COLOURS, strict=False):
            slow = np.sort(values)
            longer = 1 - np.arange(1, len(slow) + 1) / len(slow)
            axes.step(slow, np.maximum(longer, floor), where="post", color=colour)
            p50, p999 = np.quantile(slow, [0.5, 0.999]).tolist()
            marks = f"{label}: p50 {p50:.1f} ms, p99.9 {p999:.1f} ms, gap {p999 - p50:.1f} ms"
            axes.plot([p50, p999], [0.5, 0.001], "o", color=colour, markersize=7, label=marks)
        tail_axes(axes, floor)
        axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.5)
        axes.set_xlim(0, longest * 1.12)
        axes.set_xlabel("latency in ms, from the scheduled send to the answer")
        axes.set_ylabel("share of queries that took longer")
        axes.legend(loc="upper right", edgecolor="none", framealpha=1)
        axes.set_title(title, loc="left", fontweight="bold")
        save(figure, path, note)
