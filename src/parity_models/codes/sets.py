"""Sets of a group's outputs that may be unavailable together."""

from itertools import combinations
from math import comb

import numpy as np

MOST_SETS = 128
"""Sets of one size that are tried at most."""


def some_sets(of: int, size: int, seed: int, most: int = MOST_SETS) -> list[tuple[int, ...]]:
    """All sets of `size` out of `of` outputs or, of more than `most`, that many drawn by `seed`."""
    if comb(of, size) <= most:
        return list(combinations(range(of), size))
    random = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < most:
        drawn.add(tuple(sorted(random.choice(of, size, replace=False).tolist())))
    return sorted(drawn)
