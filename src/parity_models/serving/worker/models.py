"""A worker's models: read, known by their hashes, and warm."""

import hashlib
import os
from contextlib import suppress

import onnxruntime

from parity_models.errors import ModelError
from parity_models.models.onnx_model import FATAL_ONLY, OnnxModel
from parity_models.models.pinned_model import check_sha256
from parity_models.serving.worker.wire import AssignedModel

MAX_READ = 2**30
"""Bytes that are read at once; the system's own limit is below the size of the largest model."""


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
        model = OnnxModel(_read_copy(assigned), signature=assigned.signature)
    except ModelError as error:
        raise ModelError(f"{assigned.name}: {error}") from error
    return warm_model(model, assigned.name)


def _read_copy(assigned: AssignedModel) -> bytes:
    """The content of a copy. Raises ModelError if it is not what the server checked."""
    pieces = []
    at, size = 0, os.fstat(assigned.descriptor).st_size
    # All who have inherited a descriptor share its position: each reads at places of its own.
    while piece := os.pread(assigned.descriptor, min(size - at, MAX_READ), at):
        pieces.append(piece)
        at += len(piece)
    content = b"".join(pieces)
    check_sha256(assigned.name, assigned.sha256, hashlib.sha256(content).hexdigest())
    return content
