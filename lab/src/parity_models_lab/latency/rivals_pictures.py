"""Pictures of the rule: when outputs are released, the purse in bursts, and the tails of rivals."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
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

SHOWN = (14.5, 25.0)  # seconds of the simulation
SCENES = ("transfers", "transfers", "degraded instances", "load in bursts")
LOADS = (0.5, 0.9, 0.9, 0.9)
POLICIES = ("cascade", "slackfit", "proteus-like", "hedging", "adaptive")
TICKS = (30, 50, 100, 200, 500, 1000, 2000)

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]


class Watched(Adaptive):
    """The policy; `seen` has a row for each arrival: the time in seconds, the queries that wait for
    each instance, the filling of the purse, and the price."""

    seen: ClassVar[list[tuple[float, ...]]] = []

    def arrived(self, port: Port, query: Query) -> None:
        super().arrived(port, query)
        purse = self.race_rule.purse
        self.seen.append((port.now, self.waiting, purse.left / purse.share / WINDOW, purse.price))


def draw(folder: Path, rows: Rows, doubts: Floats, simulate: Callable[[str], object]) -> None:
    """Write released.svg, purse.svg and rivals.svg; the same numbers give the same bytes.

    `rows` are the figure's, `doubts` (n,) those of the stand-in's outputs. `simulate` runs a
    policy, given with its options, in a scene with bursts.
    """
    Watched.seen.clear()
    simulate(f"{__name__}:{Watched.__name__}@differ={DIFFER}")
    with style(), rc_context({"svg.hashsalt": "parity-models", "svg.fonttype": "none"}):
        pictures = (_released(doubts), _purse(np.array(Watched.seen)), _tails(rows))
        for name, picture in zip(("released", "purse", "rivals"), pictures, strict=True):
            picture.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _released(doubts: Floats) -> Figure:
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
        ages = [SHARE if x <= most else rule.released_after(x) for x in at]
        about = f"while {waiting:g} query waits per instance"
        about = about if waiting else f"{FIRST - spent:,} queries' budget left"
        label = f"price {rule.purse.price:,.0f}, {about}"
        axes.plot(at, ages, "--" if waiting else "-", color=colour, label=label)
    axes.set(xscale="log", xlim=(at[0], at[-1]), ylim=(0, 6), xlabel="doubt of the output")
    axes.set_ylabel("age of the query when it\nanswers, in median run times")
    axes.legend(frameon=False, loc="upper left")
    return picture


def _purse(seen: Floats) -> Figure:
    """Queries that wait, the filling of the purse, and the price, over time."""
    picture = Figure(figsize=(8, 4.4), layout="constrained")
    shown = seen[(seen[:, 0] >= SHOWN[0]) & (seen[:, 0] < SHOWN[1])][::8].T
    panels = picture.subplots(3, 1, sharex=True)
    names = ("queries waiting\nper instance", "filling of\nthe purse", "price")
    for axes, column, name, colour in zip(panels, shown[1:], names, COLOURS, strict=False):
        axes.plot(shown[0], column, color=colour, linewidth=1.2)
        axes.set(ylabel=name, xlim=SHOWN, ylim=(0, 1.05 * max(column, default=1.0)))
    panels[1].axhline(KEPT, color=FAINT, linestyle=":")
    panels[2].set_xlabel("seconds")
    picture.align_ylabels()
    return picture


def _tails(rows: Rows) -> Figure:
    """The p99.9 of each policy over the budget, with doubts in hindsight, in some scenes."""
    picture = Figure(figsize=(10, 3.4), layout="constrained")
    every = picture.subplots(1, len(SCENES), sharey=True)
    for axes, *place in zip(every, SCENES, LOADS, strict=True):
        for name, colour in zip(POLICIES, (*COLOURS[:3], FAINT, INK), strict=True):
            about, keys = ["hindsight", *place, name], ("evidence", "scene", "load", "policy")
            found = [row for row in rows if [row[key] for key in keys] == about]
            points = {row["budget"]: row["p99.9"] for row in found if np.isfinite(row["p99.9"])}
            width = 2.5 if name == "adaptive" else 1.2
            axes.plot([*points], [*points.values()], "o-", c=colour, lw=width, label=name)
        axes.set_title(f"{place[0]}, {place[1]:.0%}", fontsize=10)
        axes.set(xscale="log", yscale="log", xlim=(2e-2, 5e-5))
        axes.set_xticks([0.01, 0.001, 0.0001], ["1 %", "0.1 %", "0.01 %"])
        axes.set_yticks(TICKS, TICKS)
        axes.minorticks_off()
        axes.grid(axis="y", color=FAINT, alpha=0.25)
    every[0].set_ylabel("p99.9, ms")
    every[0].legend(frameon=False, fontsize=9, loc="upper left")
    picture.supxlabel("share of all answers that may differ", fontsize=10)
    return picture
