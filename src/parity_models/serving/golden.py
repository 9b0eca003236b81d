"""Whether an instance answers a golden query, whose output is known, as it should."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Golden = tuple[NDArray[Any], NDArray[Any]]
"""Golden queries (n, *input shape) of a model, and its outputs for them (n, *output shape)."""


def is_right(golden: Golden, probe: int, output: NDArray[Any], tolerance: float) -> bool:
    """Is `output` (*output shape) what golden query number `probe`, modulo n, gives?

    It may be off by `tolerance` times the largest value.
    """
    expected = golden[1][probe % len(golden[1])].astype(np.float64)
    if output.shape != expected.shape:
        return False
    off = np.abs(output.astype(np.float64) - expected).max(initial=0.0)
    return bool(off <= tolerance * np.abs(expected).max(initial=0.0))
