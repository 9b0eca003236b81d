"""What encoding and decoding cost, one group at a time, as a server does it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, TrainingFreeCode

Array = NDArray[Any]

TIMED = 200
"""Groups that are encoded and decoded; the times are medians, in microseconds."""


def coding_times(code: Code, inputs: Array) -> tuple[float, float]:
    """To encode k queries of `inputs` (n, *query_shape), and to decode one unavailable prediction
    of a group from all else that there is of it.
    """
    predictions = [None, *[np.ones((1, *code.output_shape), np.float32)] * (code.k - 1)]
    outputs = [np.ones((1, *code.parity_output_shape), np.float32)] * code.r
    decode = partial(code.decode, predictions, outputs)
    groups = np.resize(np.arange(len(inputs)), (TIMED, code.k))
    name = next(iter(code.query_shapes))
    encoding = _median_us(
        partial(code.encode, [{name: inputs[row : row + 1]} for row in group]) for group in groups
    )
    return encoding, _median_us([decode] * TIMED)


def free_coding_times(
    code: TrainingFreeCode, inputs: Array, outputs: Sequence[Array]
) -> tuple[float, float]:
    """To encode k queries of `inputs` (n, *query_shape), and to decode all k predictions.

    `outputs` are F's for each coded query of some groups: n arrays (groups, *output_shape). One
    of each group is taken as unavailable, where the code allows that.
    """
    here: list[Array | None] = [output[:1] for output in outputs]
    if code.r > 0:
        here[0] = None
    return _encoding_time(code, inputs), _median_us([partial(code.decode, here)] * TIMED)


def _encoding_time(code: TrainingFreeCode, inputs: Array) -> float:
    groups = np.resize(np.arange(len(inputs)), (TIMED, code.k))
    return _median_us(
        partial(code.encode, [inputs[row : row + 1] for row in group]) for group in groups
    )


def _median_us(calls: Iterable[Callable[[], object]]) -> float:
    took = []
    for call in calls:
        began = perf_counter()
        call()
        took.append(perf_counter() - began)
    return 1e6 * median(took)
