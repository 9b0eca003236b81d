"""The deployed model F as imitators see it: a torch module, whatever it really is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.errors import DataError, TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import run_by_bucket
from parity_models.models.weights import has_weights, load_deployed
from parity_models.training.device_queries import BATCH
from parity_models.training.rows import Rows
from parity_models.training.subject import subject_of

Told = Callable[[int], None]
"""Told how many rows the deployed model has just predicted."""


def load_teacher(bundle: Bundle, told: Told | None = None) -> nn.Module:
    """The deployed model of `bundle`: its network if the bundle holds its weights, else in ONNX
    Runtime.

    Raises BundleError for weights that do not fit the network they are said to be of.
    """
    subject = subject_of(bundle)
    if not subject.plain:
        return _Named(bundle, subject.output.name, told)
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

        Raises DataError for queries that it cannot run, and for predictions that are not finite:
        nothing can be learned from those.
        """
        taken, given = self._model.signature.inputs[0].name, self._model.signature.outputs[0].name
        outputs = self._model.predict({taken: queries.detach().cpu().numpy()})[given]
        _check_finite(outputs)
        if self._told is not None:
            self._told(len(outputs))
        return torch.from_numpy(outputs).to(queries.device)


class _Named(nn.Module):
    """One output of a deployed model with named inputs, in ONNX Runtime, each query at its own
    size."""

    def __init__(self, bundle: Bundle, output: str, told: Told | None) -> None:
        super().__init__()
        deployed = bundle.manifest.deployed
        self._model = OnnxModel(
            bundle.deployed_path, signature=deployed.signature, threads=torch.get_num_threads()
        )
        self._output = output
        self._told = told

    def forward(self, *tensors: Tensor) -> Tensor:
        """The inputs' tensors (n, ...), in their order, to (n, *output_shape).

        Raises DataError for queries that it cannot run, and for predictions that are not finite.
        """
        signature = self._model.signature
        arrays = Rows(tensors, torch.empty(0), ()).arrays(signature)
        outputs = run_by_bucket(
            self._model.predict, arrays, signature, self._output, BATCH, self._told
        )
        _check_finite(outputs)
        return torch.from_numpy(outputs.astype(np.float32, copy=False)).to(tensors[0].device)


def _check_finite(outputs: NDArray[Any]) -> None:
    if not np.isfinite(outputs).all():
        raise DataError(
            "the deployed model predicts NaN or infinite values for some of the inputs; "
            "leave those out, or check that inputs are scaled as the model expects them"
        )
