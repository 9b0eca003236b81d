"""The frontier as a picture: time against agreement, and against coverage."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from parity_models.protection.finalists import Finalist
from parity_models.protection.frontier_table import on_frontier

INK, FAINT, ON, OFF = "#222222", "#8a8a8a", "#0068a8", "#b0b0b0"


def draw_frontier(path: Path, finalists: Sequence[Finalist], level: float) -> None:
    """Write an SVG of the finalists, those on the frontier joined."""
    with mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        agreement, coverage = figure.subplots(1, 2, sharex=True)
        best = on_frontier(finalists)
        ordered = sorted(finalists, key=lambda each: each.share)
        front = [each for each in ordered if each.name in best]
        for axes, value, title in (
            (agreement, "agreement", "agreement with the model, all queries, %"),
            (coverage, "covered", f"may answer at {level:g}, % of queries"),
        ):
            axes.plot(
                [each.share for each in front],
                [100 * getattr(each, value) for each in front],
                color=ON,
                linewidth=1,
            )
            for each in ordered:
                at = each.share, 100 * getattr(each, value)
                axes.plot(*at, "o", color=ON if each.name in best else OFF)
                axes.annotate(each.name, at, xytext=(5, -10), textcoords="offset points", size=7)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("time of a run, as a share of the model's")
            axes.spines[["top", "right"]].set_visible(False)
        agreement.set_xlim(left=0)
        figure.savefig(path)
