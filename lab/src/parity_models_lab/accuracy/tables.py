"""The results of a matrix: a JSON file for each deployed model, and pictures."""

from collections.abc import Sequence
from pathlib import Path

from parity_models_lab.accuracy.approaches import Approach, parity_approach, plain_approach
from parity_models_lab.accuracy.figures import (
    plot_against_k,
    plot_by_model,
    plot_codes,
    plot_overhead,
)
from parity_models_lab.accuracy.results import ModelResults
from parity_models_lab.results import Row, write_result


def write_model(folder: Path, model: ModelResults) -> list[Row]:
    """Write TASK-NETWORK.json and pictures into a folder; return the rows.

    There is a row for everything that could answer an unavailable prediction, the cheapest first.
    A_a is the accuracy with all predictions available, A_d that of answers in place of unavailable
    ones, with every member of every group of the test set unavailable in turn, A_o that of all
    answers with a share of predictions unavailable. `overhead` is work beyond one run of the model
    for each query; encoding and decoding take µs for a group.
    """
    deployed = model.deployed
    folder.mkdir(parents=True, exist_ok=True)
    slug = _slug(model)
    if len(model.codes) > 1:
        plot_codes(folder / f"{slug}-codes.png", model)
    plot_overhead(folder / f"{slug}-overhead.png", model, approaches(model))
    rows = [_row(model, one) for one in approaches(model)]
    write_result(
        folder / f"{slug}.json",
        str(model.cell),
        rows,
        metric=deployed.metric,
        queries=deployed.queries,
        A_a=deployed.available,
        trained={"epochs": deployed.epochs, "seconds": deployed.seconds},
        measured=deployed.date,
    )
    return rows


def write_overview(folder: Path, results: Sequence[ModelResults]) -> None:
    """Draw the pictures that compare all deployed models."""
    plot_by_model(folder / "models.png", results)
    plot_against_k(folder / "k.png", results)


def approaches(model: ModelResults) -> list[Approach]:
    """Return everything that could answer an unavailable prediction, the dearest last."""
    available = model.deployed.available
    codes = [
        parity_approach(str(one.cell), one.overhead, one.accuracy, one.encode_us, one.decode_us)
        for one in model.codes
    ]
    replication = plain_approach("replication", 1.0, available, available)
    return sorted((replication, *codes, *model.approaches), key=lambda one: one.overhead)


def _row(model: ModelResults, one: Approach) -> Row:
    code = next((each for each in model.codes if str(each.cell) == one.name), None)
    row: dict[str, object] = {"approach": one.name, "overhead": one.overhead}
    for unavailable, share in enumerate(one.degraded, 1):
        row["A_d" if unavailable == 1 else f"{unavailable} unavailable"] = share
    row |= {f"A_o {float(f):.0%}": share for f, share in one.overall.items()}
    row |= {"encode": one.encode_us, "decode": one.decode_us}
    if code is not None:
        row |= {
            "agreement": code.accuracy.agreement,
            "time": code.relative_time,
            "training s": code.seconds,
        }
    return row


def _slug(model: ModelResults) -> str:
    recipe = "" if model.cell.recipe == "usual" else f"-{model.cell.recipe}"
    task = model.cell.task.rpartition(":")[2]
    return f"{task}-{model.cell.network}{recipe}".replace(":", "-").replace("@", "-")
