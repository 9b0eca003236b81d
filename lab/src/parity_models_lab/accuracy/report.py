"""The results of an accuracy matrix: a JSON file for each deployed model, and pictures."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from parity_models_lab.accuracy.measure import Approach, ModelResults, plain_approach
from parity_models_lab.plots import COLOURS, FAINT, PALETTE, one_panel
from parity_models_lab.results import Row, write_result

AVAILABLE, OURS, THEIRS = FAINT, COLOURS[1], COLOURS[0]
WIDTH = 0.27
DEFAULT = "default prediction"


def write_model(folder: Path, model: ModelResults) -> list[Row]:
    """Write TASK-NETWORK.json and a picture into a folder; return the rows.

    There is a row for everything that could answer an unavailable prediction, the cheapest first.
    A_a is the accuracy with all predictions available, A_d that of answers in place of unavailable
    ones, with every member of every group of the test set unavailable in turn, A_o that of all
    answers with a share of predictions unavailable. `overhead` is work beyond one run of the model
    for each query; encoding and decoding take µs for a group.
    """
    deployed = model.deployed
    recipe = "" if model.cell.recipe == "usual" else f"-{model.cell.recipe}"
    task = model.cell.task.rpartition(":")[2]
    name = f"{task}-{model.cell.network}{recipe}".replace(":", "-").replace("@", "-")
    replication = plain_approach("replication", 1.0, deployed.available, deployed.available)
    approaches = sorted((replication, *model.approaches), key=lambda one: one.overhead)
    plot_overhead(folder / f"{name}-overhead.png", model, approaches)
    rows = list(map(_row, approaches))
    write_result(
        folder / f"{name}.json",
        str(model.cell),
        rows,
        metric=deployed.metric,
        queries=deployed.queries,
        A_a=deployed.available,
        trained={"epochs": deployed.epochs, "seconds": deployed.seconds},
        measured=deployed.date,
    )
    return rows


def _row(one: Approach) -> Row:
    row: dict[str, object] = {"approach": one.name, "overhead": one.overhead}
    for unavailable, share in enumerate(one.degraded, 1):
        row["A_d" if unavailable == 1 else f"{unavailable} unavailable"] = share
    row |= {f"A_o {float(f):.0%}": share for f, share in one.overall.items()}
    row |= {"encode": one.encode_us, "decode": one.decode_us}
    if one.cell is not None:
        row |= {"agreement": one.agreement, "time": one.relative_time, "training s": one.seconds}
    return row


def plot_models(path: Path, results: Sequence[ModelResults]) -> None:
    """Write a PNG of A_a, our best A_d and the published recipe's, at the smallest k of each."""
    with one_panel(path, (max(6.0, 1.6 * len(results)), 4.2)) as axes:
        for place, model in enumerate(results):
            bars = [(AVAILABLE, "A_a", model.deployed.available)]
            coded = [(one.cell, one.degraded[0]) for one in model.approaches if one.cell]
            least = min((cell.k for cell, _ in coded), default=0)
            for recipe, colour, label in (
                ("distilled", OURS, "A_d, best code here"),
                ("published", THEIRS, "A_d, published recipe"),
            ):
                wanted = (least, 1, recipe)
                here = [share for c, share in coded if (c.k, c.r, c.recipe) == wanted]
                bars += [(colour, label, max(here))] if here else []
            for i, (colour, label, share) in enumerate(bars):
                x, first = place + (i - 1) * WIDTH, place == 0
                named = label if first else None
                axes.bar(x, 100 * share, WIDTH * 0.9, color=colour, label=named)
                axes.annotate(
                    f"{100 * share:.1f}", (x, 100 * share), ha="center", va="bottom", fontsize=8
                )
        names = [str(model.cell).replace(", ", "\n") for model in results]
        axes.set_xticks(range(len(results)), names, fontsize=8)
        axes.set_ylabel("test set, %")
        axes.legend(fontsize=8, edgecolor="none", ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        axes.set_title("Available and reconstructed", loc="left", fontweight="bold")


def plot_overhead(path: Path, model: ModelResults, approaches: Sequence[Approach]) -> None:
    """Write a PNG of A_d against the work that each approach costs.

    The legend gives the accuracy of the default prediction, far below all others.
    """
    families: dict[str, list[tuple[float, float, str]]] = {}
    for one in approaches:
        family, coded, numbers = one.name.partition(", k=")
        group = f"k={numbers.removesuffix(', r=1')}" if coded else ""
        families.setdefault(family, []).append((one.overhead, 100 * one.degraded[0], group))
    with one_panel(path, (9.5, 5.2)) as axes:
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
            for x, y, group in zip(xs, ys, groups, strict=True):
                axes.annotate(
                    group, (x, y), (4, 3), textcoords="offset points", fontsize=6, color=colour
                )
        axes.margins(x=0.1)
        axes.set_xlabel("work beyond one run of F for each query, in runs of F")
        axes.set_ylabel("A_d, %")
        axes.legend(fontsize=7, edgecolor="none", loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(f"{model.cell}: what an answer costs", loc="left", fontweight="bold")
