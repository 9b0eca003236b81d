"""Queries that ended the instances they were tried on, remembered so that they end no more."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.serving.errors import PoisonError

REMEMBERED = 600.0
"""Seconds for which such a query is refused: what it broke may be mended by then."""

MOST = 1000
"""How many are remembered; the oldest are forgotten first."""


class Poison:
    """Rows by the hash of their content. True while any is remembered, as few servers ever do."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def remember(self, row: NDArray[Any], now: float) -> None:
        """Refuse rows like this one (*input shape) for REMEMBERED seconds."""
        self._until[_digest(row)] = now + REMEMBERED
        self._until.move_to_end(_digest(row))
        if len(self._until) > MOST:
            self._until.popitem(last=False)

    def check(self, rows: NDArray[Any], now: float) -> None:
        """Raises PoisonError if one of the rows (n, *input shape) is remembered."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        for i in range(len(rows) if self._until else 0):
            if _digest(rows[i, ...]) in self._until:
                raise PoisonError(
                    f"poison: row {i} ended the instances that it was tried on before; it is "
                    f"refused for {REMEMBERED:.0f} s"
                )


def _digest(row: NDArray[Any]) -> bytes:
    whole = np.ascontiguousarray(row).reshape(-1)
    return blake2b(whole.view(np.uint8).data, digest_size=16).digest()
