"""The deployed model F as imitators see it: a torch module, whatever it really is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from parity_models.errors import DataError, TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.weights import has_weights, load_deployed

Told = Callable[[int], None]
"""Told how many rows the deployed model has just predicted."""


def load_teacher(bundle: Bundle, told: Told | None = None) -> nn.Module:
    """The deployed model of `bundle`: its network if the bundle holds its weights, else in ONNX
    Runtime.

    Raises BundleError for weights that do not fit the network they are said to be of.
    """
    if has_weights(bundle):
        try:
            return load_deployed(bundle)
        except TrainingError:  # a network that is not one of ours
            pass
    return _Onnx(bundle.deployed_path, told)


class _Onnx(nn.Module):
    """A deployed model in ONNX Runtime, which can predict, but has no weights to start from."""

    def __init__(self, path: Path, told: Told | None) -> None:
        super().__init__()
        self._model = OnnxModel(path, threads=torch.get_num_threads())
        self._told = told

    def forward(self, queries: Tensor) -> Tensor:
        """(n, *query_shape) to (n, *output_shape), on the device of `queries`.

        Raises DataError for predictions that are not finite: nothing can be learned from those.
        """
        outputs = self._model(np.ascontiguousarray(queries.detach().cpu().numpy()))
        if not np.isfinite(outputs).all():
            raise DataError(
                "the deployed model predicts NaN or infinite values for some of the inputs; "
                "leave those out, or check that inputs are scaled as the model expects them"
            )
        if self._told is not None:
            self._told(len(outputs))
        return torch.from_numpy(outputs).to(queries.device)
