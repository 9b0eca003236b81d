"""The rows of weights that tell r parities apart."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(256)
def parity_weights(k: int, r: int) -> NDArray[np.float64]:
    """Weights w of shape (r, k) with P_j = Σ_i w_ji X_i; row 0 is all ones.

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


def recovery_weights(
    weights: NDArray[np.float64], missing: tuple[int, ...], rows: tuple[int, ...]
) -> NDArray[np.float64]:
    """How to recover the `missing` of k values from sums of them and from the other values.

    `weights` (r, k) made the sums, of which `rows` are here: as many as are missing, or more,
    when errors in them are evened out (least squares). Gives (missing, rows + others).
    """
    here = [i for i in range(weights.shape[1]) if i not in missing]
    sums = weights[list(rows)]
    inverse = np.linalg.pinv(sums[:, list(missing)])
    return np.concatenate([inverse, -inverse @ sums[:, here]], axis=1)
