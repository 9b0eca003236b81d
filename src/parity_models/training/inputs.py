"""The unlabelled queries that imitators of a deployed model are trained on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from parity_models.errors import DataError
from parity_models.tasks import Split
from parity_models.training.queries import predict

HELD_OUT = 10
"""One of so many inputs validates where no validation set is given."""


def check_inputs(
    inputs: NDArray[np.float32], shape: tuple[int, ...], what: str, least: int = 1
) -> None:
    """Raise DataError unless `inputs` are float32 (n, *shape), with `least` of them at least."""
    if inputs.shape[1:] != shape or inputs.dtype != np.float32:
        raise DataError(
            f"the {what} are {inputs.dtype} of shape {inputs.shape[1:]}; the deployed model takes "
            f"float32 of shape {shape}"
        )
    if len(inputs) < least:
        raise DataError(f"there are {len(inputs)} {what}, too few: give {least} or more")


def hold_out(
    inputs: NDArray[np.float32], model: nn.Module, device: torch.device
) -> tuple[NDArray[np.float32], Split]:
    """Part some inputs for validation, labelled by the deployed model `model`."""
    order = np.random.default_rng(0).permutation(len(inputs))
    rest, drawn = np.split(order, [len(inputs) - len(inputs) // HELD_OUT])
    held_out = inputs[drawn]
    labels = predict(model, torch.from_numpy(held_out).to(device)).argmax(dim=-1)
    return inputs[rest], Split(held_out, labels.cpu().numpy())
