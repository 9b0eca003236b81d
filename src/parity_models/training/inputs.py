"""The unlabelled queries that imitators of a deployed model are trained on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.errors import DataError, ModelError
from parity_models.models.tensor import tensors_in
from parity_models.tasks import Split
from parity_models.tasks.user_data import check_queries, check_varied
from parity_models.training.device_queries import predict
from parity_models.training.rows import DeviceQueries
from parity_models.training.subject import Subject

HELD_OUT = 10
"""One of so many inputs validates where no validation set is given."""

TRIED = 8
"""Rows that are predicted together and one by one."""


def check_inputs(
    inputs: NDArray[Any], subject: Subject, least: int, what: str = "training inputs"
) -> None:
    """Raise DataError unless `inputs` are n >= `least` finite queries that differ: float32
    (n, *query_shape), or rows of one kind of the deployed model's signature."""
    if subject.plain:
        check_queries(inputs, subject.signature.input.shape, what, least)
    else:
        _check_rows(inputs, subject, least, what)
    check_varied(inputs, what)


def check_splits(
    inputs: NDArray[Any], validation: Split | None, subject: Subject, least: int
) -> None:
    """Likewise of both: `least` or more for training and for validation, which, where there is
    none, is held out of the `inputs`."""
    check_inputs(inputs, subject, least if validation else 2 * least)
    if validation is not None:
        check_inputs(validation.inputs, subject, least, "validation inputs")


def _check_rows(inputs: NDArray[Any], subject: Subject, least: int, what: str) -> None:
    if len(inputs) < least:
        raise DataError(f"there are {len(inputs)} {what}, too few: give {least} or more")
    try:
        subject.signature.kind_of(inputs[0, ...])
    except ValueError as error:
        raise DataError(f"the {what} do not fit the model: it {error}") from error
    if not all(np.isfinite(each).all() for each in tensors_in(inputs) if each.dtype.kind == "f"):
        raise DataError(f"the {what} hold NaN or infinite values; leave such rows out")


def check_telling(predictions: Tensor) -> None:
    """Raise DataError if F's `predictions` (n, *output_shape) are all the same."""
    if len(predictions) > 1 and (predictions == predictions[:1]).all():
        raise DataError(
            "the deployed model predicts the same for all inputs, so nothing can be learned from "
            "it; check that they are scaled as the model expects them"
        )


def check_rows_apart(model: nn.Module, queries: DeviceQueries) -> None:
    """Raise ModelError if what `model` predicts for a row depends on the rest of the batch."""
    rows = queries[:TRIED]
    together = predict(model, rows)
    alone = torch.cat([predict(model, rows[i : i + 1]) for i in range(len(rows))])
    allowed = 1e-2 * together.abs().max()
    if (together - alone).abs().max() > allowed:
        raise ModelError(
            "what the deployed model predicts for a query depends on the others in its batch, so "
            "serving could not batch queries; export it in evaluation mode (module.eval())"
        )


def part(inputs: NDArray[Any], least: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The inputs (n, ...) to learn from, and those, `least` or more, to hold out."""
    order = np.random.default_rng(0).permutation(len(inputs))
    rest, drawn = np.split(order, [len(inputs) - max(least, len(inputs) // HELD_OUT)])
    return inputs[rest], inputs[drawn]
