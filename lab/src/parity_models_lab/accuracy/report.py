"""The results of an accuracy matrix: a JSON file for each deployed model."""

from pathlib import Path

from parity_models_lab.accuracy.measure import Approach, ModelResults, plain_approach
from parity_models_lab.results import Row, write_result


def write_model(folder: Path, model: ModelResults) -> list[Row]:
    """Write TASK-NETWORK.json into a folder; return the rows.

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
