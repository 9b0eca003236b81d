"""A worker's models: read, known by their hashes, and warm."""

from contextlib import suppress

import onnxruntime

from parity_models.errors import ModelError
from parity_models.models.onnx_model import FATAL_ONLY, OnnxModel
from parity_models.serving.worker.copies import read_copy
from parity_models.serving.worker.wire import AssignedModel


def warm_model(model: OnnxModel, name: str) -> OnnxModel:
    """The model, called `name`, after its first run and the first that was cancelled, which are
    slower than the others, and leave behind what stays in memory.

    Raises ModelError if it does not run.
    """
    row = model.signature.largest.input.zeros(1)
    try:
        model(row)
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise ModelError(f"{name} does not run on a row of zeros: {error}") from error
    cancelled = onnxruntime.RunOptions()
    cancelled.terminate = True
    cancelled.log_severity_level = FATAL_ONLY
    with suppress(Exception):
        model(row, cancelled)
    return model


def load(assigned: AssignedModel) -> OnnxModel:
    """The model, warm. Raises ModelError if its content is not the one that was assigned, or cannot
    be run, and OSError if it cannot be read."""
    try:
        model = OnnxModel(read_copy(assigned), signature=assigned.signature)
    except ModelError as error:
        raise ModelError(f"{assigned.name}: {error}") from error
    return warm_model(model, assigned.name)
