"""The unlabelled queries that imitators of a deployed model are trained on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.errors import DataError, ModelError
from parity_models.tasks import Split
from parity_models.tasks.unlabelled import labels_from
from parity_models.tasks.user_data import check_queries, check_varied
from parity_models.training.queries import predict

HELD_OUT = 10
"""One of so many inputs validates where no validation set is given."""

TRIED = 8
"""Rows that are predicted together and one by one."""


def check_inputs(inputs: NDArray[Any], shape: tuple[int, ...], least: int) -> None:
    """Raise DataError unless `inputs` are finite float32 (n, *shape) that differ, n >= `least`."""
    check_queries(inputs, shape, "training inputs", least)
    check_varied(inputs, "training inputs")


def check_telling(predictions: Tensor) -> None:
    """Raise DataError if F's `predictions` (n, *output_shape) are all the same."""
    if len(predictions) > 1 and (predictions == predictions[:1]).all():
        raise DataError(
            "the deployed model predicts the same for all inputs, so nothing can be learned from "
            "it; check that they are scaled as the model expects them"
        )


def check_rows_apart(model: nn.Module, inputs: NDArray[Any], device: torch.device) -> None:
    """Raise ModelError if what `model` predicts for a row depends on the rest of the batch."""
    rows = torch.from_numpy(inputs[:TRIED]).to(device)
    together = predict(model, rows)
    alone = torch.cat([predict(model, row[None]) for row in rows])
    allowed = 1e-2 * together.abs().max()
    if (together - alone).abs().max() > allowed:
        raise ModelError(
            "what the deployed model predicts for a query depends on the others in its batch, so "
            "serving could not batch queries; export it in evaluation mode (module.eval())"
        )


def hold_out(
    inputs: NDArray[np.float32], model: nn.Module, device: torch.device, metric: str, least: int
) -> tuple[NDArray[np.float32], Split]:
    """Part some inputs, `least` or more, for validation, labelled by the deployed model `model`."""
    order = np.random.default_rng(0).permutation(len(inputs))
    rest, drawn = np.split(order, [len(inputs) - max(least, len(inputs) // HELD_OUT)])
    held_out = inputs[drawn]
    predictions = predict(model, torch.from_numpy(held_out).to(device)).cpu().numpy()
    return inputs[rest], Split(held_out, labels_from(predictions, metric))
