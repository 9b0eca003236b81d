"""Pictures of the rule: when outputs are released, the purse in bursts, and the tails of rivals."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.policies.adaptive import Adaptive
from parity_models.scheduling.port import Port
from parity_models.scheduling.race import FIRST, KEPT, WINDOW, Rule
from parity_models.scheduling.work import Query
from parity_models_lab.plots import COLOURS, FAINT, INK, style

DIFFER, SHARE = 0.001, 0.035
"""The budget of the first two pictures, and the backup's run time in the model's."""

CASES = ((0, 0.0, COLOURS[0]), (1500, 0.0, COLOURS[1]), (2500, 0.0, COLOURS[2]), (0, 1.0, INK))
"""The lines of the first picture: the queries whose budget is spent from a new purse, and those
that wait for each instance."""

SHOWN = (14.5, 25.0)
"""The seconds of the simulation that are shown."""

SCENES = ("transfers", "transfers", "degraded instances", "load in bursts")
LOADS = (0.5, 0.9, 0.9, 0.9)
LINES = dict(zip(("cascade", "slackfit", "proteus-like"), COLOURS, strict=False))
LINES |= {"hedging": FAINT, "adaptive": INK}


class Watched(Adaptive):
    """The policy; `seen` has a row for each arrival: the time in seconds, the queries that wait for
    each instance, the filling of the purse, and the price."""

    seen: ClassVar[list[tuple[float, ...]]] = []

    def arrived(self, port: Port, query: Query) -> None:
        super().arrived(port, query)
        purse = self.race_rule.purse
        self.seen.append((port.now, self.waiting, purse.left / purse.share / WINDOW, purse.price))


def draw(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    doubts: NDArray[np.float64],
    simulate: Callable[[str], object],
) -> None:
    """Write released.svg, purse.svg and rivals.svg; the same numbers give the same bytes.

    `rows` are the figure's, `doubts` (n,) those of the stand-in's outputs. `simulate` runs a
    policy, given with its options, in a scene with bursts.
    """
    Watched.seen.clear()
    simulate(f"{__name__}:{Watched.__name__}@differ={DIFFER}")
    with style(), rc_context({"svg.hashsalt": "parity-models", "svg.fonttype": "none"}):
        pictures = {"released": _released(doubts), "purse": _purse(np.array(Watched.seen))}
        for name, picture in {**pictures, "rivals": _tails(rows)}.items():
            for axes in picture.axes:
                axes.spines[["top", "right"]].set_visible(False)
            picture.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _released(doubts: NDArray[np.float64]) -> Figure:
    """The age of a query at which an output answers, over its doubt."""
    picture = Figure(figsize=(8, 3.6), layout="constrained")
    axes, at = picture.subplots(), np.geomspace(1e-5, 1, 400)
    for spent, waiting, colour in CASES:
        rule = Rule(DIFFER, 0.0)
        for _ in range(50):
            rule.ended(DEPLOYED, 1.0, finished=True)
            rule.ended(BACKUP, SHARE, finished=True)
        for doubt in doubts.tolist():
            rule.output(SHARE, doubt)
        rule.purse.spend(DIFFER * spent)
        most = rule.worth(waiting) / rule.purse.price
        label = f"price {rule.purse.price:,.0f}: {FIRST - spent:,} queries' budget left"
        ages = [SHARE if x <= most else rule.released_after(x) for x in at]
        label = f"the same, while {waiting:g} query waits per instance" if waiting else label
        axes.plot(at, ages, "--" if waiting else "-", color=colour, label=label, zorder=-spent)
    axes.set(xscale="log", xlim=(at[0], at[-1]), ylim=(0, 6), xlabel="doubt of the output")
    axes.set_ylabel("age of the query when\nit answers, in median run times")
    axes.legend(frameon=False, loc="upper left")
    return picture


def _purse(seen: NDArray[np.float64]) -> Figure:
    """Queries that wait, the filling of the purse, and the price, over time."""
    picture = Figure(figsize=(8, 4.4), layout="constrained")
    shown = seen[(seen[:, 0] >= SHOWN[0]) & (seen[:, 0] < SHOWN[1])][::8].T
    panels: Sequence[Axes] = picture.subplots(3, 1, sharex=True)
    names = ("queries waiting\nper instance", "filling of\nthe purse", "price")
    for axes, column, name, colour in zip(panels, shown[1:], names, COLOURS, strict=False):
        axes.plot(shown[0], column, color=colour, linewidth=1.2)
        axes.set(ylabel=name, xlim=SHOWN, ylim=(0, 1.05 * max(column, default=1.0)))
    panels[1].axhline(KEPT, color=FAINT, linestyle=":")
    panels[2].set_xlabel("seconds")
    picture.align_ylabels()
    return picture


def _tails(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The p99.9 of each policy over the budget, with doubts in hindsight, in some scenes."""
    picture = Figure(figsize=(10, 3.4), layout="constrained")
    every: Sequence[Axes] = picture.subplots(1, len(SCENES), sharey=True)
    kept = [row for row in rows if row["evidence"] == "hindsight" and np.isfinite(row["p99.9"])]
    for axes, scene, load in zip(every, SCENES, LOADS, strict=True):
        for name, colour in LINES.items():
            about = (scene, load, name)
            found = [r for r in kept if (r["scene"], r["load"], r["policy"]) == about]
            points = sorted((row["budget"], row["p99.9"]) for row in found)
            width = 2.5 if name == "adaptive" else 1.2
            axes.plot(*np.array(points or [(np.nan,) * 2]).T, "o-", c=colour, lw=width, label=name)
        axes.set(xscale="log", yscale="log", xlim=(2e-2, 5e-5))
        axes.set_title(f"{scene}, {load:.0%}", fontsize=10)
        axes.xaxis.set_major_locator(FixedLocator([0.01, 0.001, 0.0001]))
        axes.xaxis.set_major_formatter(FixedFormatter(["1 %", "0.1 %", "0.01 %"]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(FixedLocator([30, 50, 100, 200, 500, 1000, 2000]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=FAINT, alpha=0.25)
    every[0].set_ylabel("p99.9, ms")
    every[0].legend(frameon=False, fontsize=9, loc="upper left")
    picture.supxlabel("share of all answers that may differ", fontsize=10)
    return picture
