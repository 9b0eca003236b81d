"""The base of encoders and decoders, and the weights of parity queries."""

from abc import ABC
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models import options

Array = Any
"""A numpy.ndarray or a torch.Tensor."""

Shape = tuple[int, ...]


def namespace(array: Array) -> Any:
    """Return the array API of `array`."""
    if isinstance(array, np.ndarray):  # NumPy 2 is its own
        return np
    from array_api_compat import array_namespace  # comes with torch

    return array_namespace(array)


class Coder(ABC):
    """One side of a code, for groups of k queries with r parity queries: a subclass defines its
    `name` and its `Options`."""

    name: ClassVar[str]

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """No options."""

    def __init__(self, k: int, r: int, options: Any = None) -> None:
        self.options: Any = options or self.Options()
        self.k = k
        self.r = r


@lru_cache(256)
def parity_weights(k: int, r: int) -> NDArray[np.float64]:
    """Return weights w of shape (r, k) with P_j = Σ_i w_ji X_i; row 0 is all ones.

    Row j holds the j-th powers of the nodes 1..k, scaled to sum to k so that every parity
    query has the scale of the first. A Vandermonde matrix with positive nodes is totally
    positive: each of its square submatrices is invertible, so any u parities recover any u
    unavailable predictions (the MDS property; Kosaian et al., SOSP 2019, section 3.5).
    """
    nodes = np.arange(1, k + 1, dtype=np.float64)
    rows = nodes[None, :] ** np.arange(r, dtype=np.float64)[:, None]
    weights: NDArray[np.float64] = rows * (k / rows.sum(axis=1, keepdims=True))
    weights.flags.writeable = False
    return weights
