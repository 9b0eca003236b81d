"""Pictures: their style, and axes for latency distributions."""

from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

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
