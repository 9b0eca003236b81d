"""A model that answers wrongly, as one does whose memory or accelerator is broken."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

SEED = 5


def write_liar(model: Path, file: Path) -> None:
    """Write to `file` the ONNX `model` with its weights, those of floating point, in other places
    and with other signs."""
    proto = onnx.load(model)
    rng = np.random.default_rng(SEED)
    for weights in proto.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype.kind == "f" and values.size > 1:
            shuffled = rng.permutation(-values.ravel()).reshape(values.shape)
            weights.CopyFrom(numpy_helper.from_array(shuffled, weights.name))
    onnx.save(proto, file)
