"""Inference times of models, measured side by side in ONNX Runtime."""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from parity_models.models.bundle import InferenceTimes, NewModel
from parity_models.models.manifest import BATCH
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes

ROUNDS = (5, 200)
"""Runs of every model, at least and at most, after one to warm up."""

SECONDS = 0.5
"""Seconds of the measurement within these rounds."""


def measure_models(
    deployed: NewModel,
    parity: Sequence[NewModel],
    backups: Sequence[NewModel],
    sizes: Sizes | None = None,
) -> InferenceTimes:
    """Return the inference times of the models of one bundle; of parity models, that of the first.

    `sizes` as in `inference_times`.
    """
    timed = (deployed, *backups, *parity[:1])
    models = [OnnxModel(each.onnx, signature=each.signature) for each in timed]
    own, *others = inference_times(models, sizes=sizes)
    of_parity = others.pop() if parity else None
    return InferenceTimes(own, of_parity, tuple(others), batch_time(deployed, sizes))


def batch_time(deployed: NewModel, sizes: Sizes | None = None) -> float:
    """Return the median milliseconds of a model for a BATCH, measured as by `inference_times`."""
    model = OnnxModel(deployed.onnx, signature=deployed.signature)
    return inference_times([model], BATCH, sizes)[0]


def inference_times(
    models: Sequence[OnnxModel], batch: int = 1, sizes: Sizes | None = None
) -> list[float]:
    """Return the median milliseconds that each model takes for a batch, by default of one.

    Dynamic axes, of which all models have the same, have these `sizes`; by default the largest.
    Models take turns, so that other load on the machine meets all alike: ratios mean more than the
    absolute times.
    """
    rng = np.random.default_rng(0)
    signatures = [model.signature for model in models]
    kinds = [each.largest if sizes is None else each.kind(sizes) for each in signatures]
    batches = [kind.input.draw(rng, batch) for kind in kinds]
    taken: list[list[float]] = [[] for _ in models]
    for model, rows in zip(models, batches, strict=True):
        model(rows)
    least, most = ROUNDS
    end = time.perf_counter() + SECONDS * len(models)
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for model, rows, times in zip(models, batches, taken, strict=True):
            begin = time.perf_counter()
            model(rows)
            times.append(1000 * (time.perf_counter() - begin))
    return [median(times) for times in taken]
