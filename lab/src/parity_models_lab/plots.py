"""Pictures: their style, and axes for latency distributions."""

from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

INK, FAINT = "#222222", "#8a8a8a"
PALETTE = (FAINT, "#c44e00", "#0068a8", "#2b8a3e", "#7b3fa0", "#b8860b", "#c2185b", "#17817e", INK)
"""Distinguishable in print, and the first five by colour-blind readers."""

mpl.rcParams.update({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK})
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path, note: str) -> None:
    """Write a picture, with the legend of its first axes beside it, and a note below it."""
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=8, frameon=False)
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
