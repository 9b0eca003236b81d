"""A model as a function of any number of rows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.by_bucket import run_by_bucket
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.pinned_model import PinnedModel
from parity_models.models.tensor import tensors_in

Array = NDArray[Any]
Run = Callable[[Array], Array]
"""A model: (n, *query_shape) to (n, *output_shape)."""

BATCH = 256
"""Rows that a model runs over at a time: more would gain nothing and take more memory."""


def load(model: Path | PinnedModel) -> OnnxModel:
    """The model, of a file or of a bundle, on all cores. Raises ModelError for what is none."""
    threads = os.cpu_count() or 1
    if isinstance(model, Path):
        return OnnxModel(model, threads=threads)
    return OnnxModel(model.read(), signature=model.signature, threads=threads)


def predictor(
    model: Path | PinnedModel,
    *,
    batch: int = BATCH,
    tell: Callable[[int], None] | None = None,
    output: str | None = None,
) -> Run:
    """The model, run over `batch` rows at a time; `tell` is told how many are done.

    Of several outputs it gives the one called `output`. Queries of dynamic shape are run in their
    own buckets, however far the rows are padded. The function raises DataError for queries that the
    model cannot run, and for outputs that are not finite.
    """
    path = model if isinstance(model, Path) else model.path
    loaded = load(model)
    signature = loaded.signature
    chosen = signature.outputs[0].name if output is None else output

    def checked(rows: Array) -> Array:
        outputs = loaded.predict(rows)
        return finite(outputs if output is None else outputs[chosen], path)

    def run(inputs: Array) -> Array:
        if signature.axes:
            arrays = signature.kind_of(inputs[0, ...]).input.split(inputs)
            return run_by_bucket(checked, arrays, signature, chosen, batch, tell)
        parts = []
        for start in range(0, len(inputs), batch):
            parts.append(checked(inputs[start : start + batch]))
            if tell is not None:
                tell(len(parts[-1]))
        return np.concatenate(parts)

    return run


def deployed_predictor(
    bundle: Bundle, *, batch: int = BATCH, tell: Callable[[int], None] | None = None
) -> Run:
    """The deployed model of `bundle`, as `predictor` gives it: of several outputs the one that
    stand-ins imitate.

    Raises UserError where the bundle does not say which that is.
    """
    manifest = bundle.manifest
    outputs = manifest.deployed.signature.outputs
    if len(outputs) > 1 and manifest.imitated is None:
        raise UserError(
            f"{bundle.path} has a model with several outputs "
            f"({', '.join(each.name for each in outputs)}) and no stand-in for any, so that "
            "there is nothing to judge"
        )
    name = manifest.imitated if len(outputs) > 1 else None
    return predictor(bundle.pinned(manifest.deployed), batch=batch, tell=tell, output=name)


def check_rows(bundle: Bundle, inputs: Array) -> None:
    """Raises DataError unless `inputs` (n, ...) are queries of one kind of the deployed model's."""
    try:
        bundle.manifest.deployed.signature.kind_of(inputs[0, ...])
    except (ValueError, IndexError) as error:
        raise DataError(
            f"the inputs have shape {inputs.shape} and type {inputs.dtype}; this bundle's model "
            f"takes {bundle.manifest.deployed.signature}"
        ) from error


def finite(outputs: Array, path: Path) -> Array:
    """The outputs of the model at `path`, as they are; DataError if some are NaN or infinite."""
    floats = [each for each in tensors_in(outputs) if each.dtype.kind == "f"]
    if not all(np.isfinite(each).all() for each in floats):
        raise DataError(
            f"{path.name} gives NaN or infinite values for some of the queries; leave those out, "
            "or check that they are scaled as the model expects them"
        )
    return outputs
