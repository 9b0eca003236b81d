"""The base of encoders.

An encoder is built for queries of one shape and one (k, r). `encode` takes k arrays of shape
(*batch, *query_shape) and fills an array of shape (r, *batch, *parity_shape); giving it `out`
keeps the hot path free of allocations. Images are (channels, height, width).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from array_api_compat import device

from parity_models.codes.coder import Array, Coder, Network, Shape, namespace
from parity_models.errors import CodeError


class Encoder(Coder):
    """Turns k queries into r parity queries.

    A subclass says its `name`, its `Options`, and of itself: `apart`, that every value of a parity
    query comes from one query alone; `symmetric`, that the order of queries makes no difference, so
    that nothing can tell the slots apart afterwards; `floating`, that it computes with queries and
    needs floating point. Where it depends on k, shape and options, `shape` sets `stacked_axis`, the
    axis of a parity query along which the k queries lie one after another, unchanged; and `grid`,
    the rows and columns of the tiles of a parity query that is an image, one tile for each query.

    `parity_shape` is the shape of one parity query, without batch axes. Raises CodeError when
    queries of `query_shape` cannot be encoded this way.
    """

    apart: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    floating: ClassVar[bool] = False
    stacked_axis: int | None = None
    grid: tuple[int, int] = (1, 1)

    def __init__(
        self,
        k: int,
        r: int,
        query_shape: Shape,
        options: Any = None,
        network: Network | None = None,
    ) -> None:
        super().__init__(k, r, options, network)
        self.query_shape = query_shape
        self.parity_shape = self.shape()

    @abstractmethod
    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        """Write the parity queries into `out` (r, *batch, *parity_shape), with the array API `xp`.

        The k `queries` (*batch, *query_shape) are checked. It is called for every group, and
        allocates as little as it can.
        """

    def encode(self, queries: Sequence[Array], out: Array | None = None) -> Array:
        """Encode k arrays of shape (*batch, *query_shape) into (r, *batch, *parity_shape).

        All queries have one shape and one dtype, floating point for encoders that compute
        (`floating`). `out`, if given, has the result's shape and dtype, is overwritten and
        returned. Raises CodeError otherwise.
        """
        first = queries[0]
        batch = self._check(queries)
        xp = namespace(first)
        if self.floating:
            require_floating(first, xp, self.name)
        shape = (self.r, *batch, *self.parity_shape)
        if out is None:
            out = _empty(shape, first, xp)
        elif tuple(out.shape) != shape or out.dtype != first.dtype:
            raise CodeError(
                f"the buffer to encode into has shape {tuple(out.shape)} and dtype {out.dtype}; "
                f"it needs shape {shape} and dtype {first.dtype}"
            )
        self.fill(queries, out, xp)
        return out

    def _check(self, queries: Sequence[Array]) -> Shape:
        if len(queries) != self.k:
            raise CodeError(f"this encoder takes k={self.k} queries, got {len(queries)}")
        first = queries[0]
        shape = tuple(first.shape)
        rank = len(shape) - len(self.query_shape)
        if rank < 0 or shape[rank:] != self.query_shape:
            raise CodeError(f"queries have shape {self.query_shape}, got an array of {shape}")
        for query in queries[1:]:
            if query.shape != first.shape or query.dtype != first.dtype:
                raise CodeError(
                    "queries of one group share shape and dtype, got "
                    f"{shape} {first.dtype} and {tuple(query.shape)} {query.dtype}"
                )
        return shape[:rank]


CACHE_LINE = 64


def _empty(shape: Shape, like: Array, xp: Any) -> Array:
    if not isinstance(like, np.ndarray):
        return xp.empty(shape, dtype=like.dtype, device=device(like))
    # NumPy aligns to 16 bytes; vector stores that straddle cache lines slow encoding by a sixth.
    size = math.prod(shape) * like.dtype.itemsize
    memory = np.empty(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(like.dtype).reshape(shape)


@cache
def _is_floating(dtype: Any, xp: Any) -> bool:
    floating: bool = xp.isdtype(dtype, "real floating")
    return floating


def require_floating(array: Array, xp: Any, encoder: str) -> None:
    """Raise CodeError unless `array`, of namespace `xp`, can be computed with."""
    if not _is_floating(array.dtype, xp):
        raise CodeError(
            f"the {encoder} encoder computes with queries and needs floating point, got "
            f"{array.dtype}; convert them or use the stack encoder"
        )
