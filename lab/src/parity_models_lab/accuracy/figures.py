"""Pictures of accuracy: by task and network, against k, unavailability and overhead."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from parity_models_lab.accuracy.approaches import Approach
from parity_models_lab.accuracy.results import ModelResults
from parity_models_lab.latency.figures import PALETTE
from parity_models_lab.plots import COLOURS, FAINT, INK

AVAILABLE, OURS, THEIRS = FAINT, COLOURS[1], COLOURS[0]
WIDTH = 0.27
DEFAULT = "default prediction"


def plot_by_model(path: Path, results: Sequence[ModelResults]) -> None:
    """Write a PNG of A_a, our best A_d and the published recipe's, at the smallest k of each."""
    with _axes(path, (max(6.0, 1.6 * len(results)), 4.2)) as axes:
        for place, model in enumerate(results):
            bars = [(AVAILABLE, "A_a", model.deployed.available)]
            ks = sorted({one.cell.k for one in model.codes})
            for recipe, colour, label in (
                ("distilled", OURS, "A_d, best code here"),
                ("published", THEIRS, "A_d, published recipe"),
            ):
                here = [
                    one.degraded
                    for one in model.codes
                    if one.cell.k == ks[0] and one.cell.r == 1 and one.cell.recipe == recipe
                ]
                if here:
                    bars.append((colour, label, max(here)))
            for i, (colour, label, share) in enumerate(bars):
                x = place + (i - 1) * WIDTH
                axes.bar(x, 100 * share, WIDTH * 0.9, color=colour, label=label)
                axes.annotate(
                    f"{100 * share:.1f}", (x, 100 * share), ha="center", va="bottom", fontsize=8
                )
        axes.set_xticks(
            range(len(results)),
            [str(model.cell).replace(", ", "\n") for model in results],
            fontsize=8,
        )
        axes.set_ylabel("test set, %")
        _legend_above(axes)
        axes.set_title("Available and reconstructed", loc="left", fontweight="bold")


def plot_against_k(path: Path, results: Sequence[ModelResults]) -> None:
    """Write a PNG of the best A_d at each k, beside A_a."""
    with _axes(path, (8.5, 4.2)) as axes:
        for model, colour in zip(results, cycle(PALETTE[1:]), strict=False):
            found = {k: model.best(k) for k in sorted({one.cell.k for one in model.codes})}
            points = {k: 100 * best.degraded for k, best in found.items() if best is not None}
            axes.plot(
                list(points), list(points.values()), "o-", color=colour, label=str(model.cell)
            )
            axes.axhline(100 * model.deployed.available, color=colour, linestyle=":", linewidth=1)
        axes.set_xlabel("k, queries in a coding group (dotted: A_a)")
        axes.set_ylabel("A_d, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_beside(axes)
        axes.set_title("Reconstructions by group size", loc="left", fontweight="bold")


def plot_codes(path: Path, model: ModelResults) -> None:
    """Write a PNG of A_d and of the costs of coding, by encoder and decoder, best code first."""
    codes = sorted(model.codes, key=lambda one: one.degraded)
    with _style():
        figure = Figure(figsize=(9.5, 1.2 + 0.26 * len(codes)), dpi=140, layout="constrained")
        accuracy, cost = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        places = range(len(codes))
        for place, one in zip(places, codes, strict=True):
            colour = OURS if one.cell.recipe == "distilled" else THEIRS
            accuracy.plot(100 * one.degraded, place, "o", color=colour)
            accuracy.annotate(
                f"   {100 * one.degraded:.1f}", (100 * one.degraded, place), va="center", fontsize=7
            )
            for took, mark, label in (
                (one.encode_us, "o", "encode"),
                (one.decode_us, "D", "decode"),
            ):
                cost.plot(took, place, mark, color=colour, markersize=4, label=label)
        accuracy.axvline(100 * model.deployed.available, color=FAINT, linestyle=":", linewidth=1)
        accuracy.margins(x=0.1)
        accuracy.set_yticks(places, [str(one.cell) for one in codes], fontsize=7)
        accuracy.set_xlabel("A_d, % (dotted: A_a)")
        cost.set_xscale("log")
        cost.xaxis.set_minor_formatter(NullFormatter())
        cost.set_xlabel("µs a group")
        _legend_above(cost)
        for axes in (accuracy, cost):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=FAINT, linewidth=0.3)
        accuracy.set_title(f"{model.cell}: codes", loc="left", fontweight="bold")
        figure.savefig(path)


def plot_overhead(path: Path, model: ModelResults, approaches: Sequence[Approach]) -> None:
    """Write a PNG of A_d against the work that each approach costs.

    The default prediction, far below all others, is told beside it.
    """
    families: dict[str, list[tuple[float, float, str]]] = {}
    for one in approaches:
        family, group = _family_and_group(one)
        families.setdefault(family, []).append((one.overhead, 100 * one.degraded[0], group))
    with _axes(path, (9.5, 5.2)) as axes:
        axes.axhline(
            100 * model.deployed.available, color=FAINT, linestyle=":", linewidth=1, label="A_a"
        )
        looks = zip(cycle(PALETTE), cycle("os^Dv*P"), strict=False)
        for (family, points), (colour, mark) in zip(families.items(), looks, strict=False):
            if family == DEFAULT:
                axes.plot([], [], mark, color=colour, label=f"{family}: {points[0][1]:.1f} %")
                continue
            xs, ys, groups = zip(*points, strict=True)
            axes.plot(xs, ys, mark, color=colour, label=family)
            if len(points) == 1:
                continue
            for x, y, group in zip(xs, ys, groups, strict=True):
                axes.annotate(
                    group, (x, y), (4, 3), textcoords="offset points", fontsize=6, color=colour
                )
        axes.margins(x=0.1)
        axes.set_xlabel("work beyond one run of F for each query, in runs of F")
        axes.set_ylabel("A_d, %")
        _legend_beside(axes)
        axes.set_title(f"{model.cell}: what an answer costs", loc="left", fontweight="bold")


def _family_and_group(one: Approach) -> tuple[str, str]:
    """The name of an approach without and with its k and r alone: "berrut", "k=2"."""
    family, coded, numbers = one.name.partition(", k=")
    return family, f"k={numbers.removesuffix(', r=1')}" if coded else ""


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK})


@contextmanager
def _axes(path: Path, size: tuple[float, float]) -> Iterator[Axes]:
    with _style():
        figure = Figure(figsize=size, dpi=140, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(path)


def _legend_above(axes: Axes) -> None:
    """A legend of one line, which names each label once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(
        once.values(),
        once,
        fontsize=8,
        edgecolor="none",
        ncols=len(once),
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )


def _legend_beside(axes: Axes) -> None:
    axes.legend(fontsize=7, edgecolor="none", loc="upper left", bbox_to_anchor=(1, 1))
