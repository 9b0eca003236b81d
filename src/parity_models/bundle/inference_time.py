"""Inference times of models, measured side by side in ONNX Runtime."""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from parity_models.bundle.bundle import BATCH, InferenceTimes, NewModel
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.tensors.signature import Sizes

ROUNDS = (5, 200)
"""The fewest and the most runs of every model, after one to warm up."""

SECONDS = 0.5
"""Seconds of the measurement within these rounds."""


def measure_models(
    deployed: NewModel,
    parity: Sequence[NewModel],
    backup: NewModel | None = None,
    sizes: Sizes | None = None,
) -> InferenceTimes:
    """Return the inference times of a bundle's models; of parity models, that of the first."""
    timed = (deployed, *([] if backup is None else [backup]), *parity[:1])
    models = [OnnxModel(each.onnx, signature=each.signature) for each in timed]
    own, *others = inference_times(models, sizes=sizes)
    of_parity = others.pop() if parity else None
    (batch,) = inference_times(models[:1], BATCH, sizes)
    return InferenceTimes(own, of_parity, others[0] if others else None, batch)


def inference_times(
    models: Sequence[OnnxModel], batch: int = 1, sizes: Sizes | None = None
) -> list[float]:
    """Return the median milliseconds that each model takes for a batch, by default of one.

    Dynamic axes, which all models share, have these `sizes`, by default the largest. Models take
    turns, so that other load on the machine meets all alike: ratios mean more than the times.
    """
    rng = np.random.default_rng(0)
    signatures = [model.signature for model in models]
    kinds = [each.largest if sizes is None else each.kind(sizes) for each in signatures]
    runs = [(model, kind.input.draw(rng, batch)) for model, kind in zip(models, kinds, strict=True)]
    taken: list[list[float]] = [[] for _ in models]
    for model, rows in runs:
        model(rows)
    least, most = ROUNDS
    end = time.perf_counter() + SECONDS * len(models)
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for (model, rows), times in zip(runs, taken, strict=True):
            begin = time.perf_counter()
            model(rows)
            times.append(1000 * (time.perf_counter() - begin))
    return [median(times) for times in taken]
