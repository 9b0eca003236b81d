"""Labels for queries that have none: what the deployed model itself says."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.predictor import deployed_predictor
from parity_models.models.bundle import Bundle
from parity_models.tasks.unlabelled import labels_from


def label_by_model(
    bundle: Bundle,
    inputs: NDArray[np.float32],
    metric: str,
    *,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """What the deployed model's predictions for `inputs` (n, *query_shape) make right."""

    def tell(rows: int) -> None:
        if progress is not None:
            progress(rows, len(inputs))

    return labels_from(deployed_predictor(bundle, tell=tell)(inputs), metric)
