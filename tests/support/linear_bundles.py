"""Bundles of linear models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_models import linear_model
from parity_models.bundle.bundle import Bundle, NewModel, write_bundle
from parity_models.codes import CodeSpec
from parity_models.trust.envelope import Envelope

FEATURES, CLASSES = 6, 4
WEIGHTS = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
Array = NDArray[Any]


def linear_bundle(
    folder: Path,
    deployed: Array,
    parity: Sequence[Array] = (),
    code: CodeSpec | None = None,
    backup: Array | None = None,
    envelope: Envelope | None = None,
) -> Bundle:
    """A bundle of linear models with these weights (inputs, outputs)."""
    outputs = deployed.shape[1:]

    def model(name: str, weights: Array, out_shape: tuple[int, ...]) -> NewModel:
        linear_model(folder / name, (len(weights),), out_shape, weights)
        return NewModel(folder / name, "linear")

    separate = code is not None and code.decoder == "separate"
    out_shape = (code.k, *outputs) if separate and code is not None else outputs
    return write_bundle(
        folder / "bundle",
        deployed=model("deployed.onnx", deployed, outputs),
        parity=[model(f"{j}.onnx", weights, out_shape) for j, weights in enumerate(parity)],
        backup=None if backup is None else model("backup.onnx", backup, outputs),
        code=code,
        envelope=envelope,
    )
