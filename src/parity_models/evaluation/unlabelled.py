"""Labels for queries that have none: what the deployed model itself says."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.evaluation.accuracy import Progress
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.tasks.unlabelled import labels_from

BATCH = 256


def label_by_model(
    bundle: Bundle,
    inputs: NDArray[np.float32],
    metric: str,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """What the deployed model's predictions for `inputs` (n, *query_shape) make right."""
    model = OnnxModel(bundle.deployed_path, threads=threads)
    parts = []
    for start in range(0, len(inputs), BATCH):
        parts.append(model(inputs[start : start + BATCH]))
        if progress is not None:
            progress(len(parts[-1]), len(inputs))
    return labels_from(np.concatenate(parts), metric)
