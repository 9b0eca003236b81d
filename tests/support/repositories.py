"""Folders of bundles whose versions can be told apart by what they predict."""

from pathlib import Path

import numpy as np

from onnx_models import linear_model
from parity_models.models.bundle import NewModel, write_bundle

INPUTS, OUTPUTS = 8, 4
WEIGHTS = np.random.default_rng(3).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)


def write_version(
    repository: Path, name: str, version: str, times: float = 1.0, inputs: int = INPUTS
) -> Path:
    """A version that predicts `times` what the others do: the same class, unless it is negative."""
    onnx = repository.parent / f"{name}-{version}.onnx"
    weights = np.float32(times) * np.resize(WEIGHTS, (inputs, OUTPUTS)).astype(np.float32)
    linear_model(onnx, (inputs,), (OUTPUTS,), weights)
    folder = repository / name / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_bundle(folder, deployed=NewModel(onnx, "linear"), name="another").path
