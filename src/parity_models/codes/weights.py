"""The weights of the r parity queries, and sets of outputs that may be unavailable."""

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

MOST_SETS = 128
"""Maximum number of sets of one size that are tried."""


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


def some_sets(of: int, size: int, seed: int, most: int = MOST_SETS) -> list[tuple[int, ...]]:
    """Return all sets of `size` out of `of` outputs, or `most` of them, drawn by `seed`."""
    if comb(of, size) <= most:
        return list(combinations(range(of), size))
    random = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < most:
        drawn.add(tuple(sorted(random.choice(of, size, replace=False).tolist())))
    return sorted(drawn)
