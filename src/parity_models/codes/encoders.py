"""Encoders: k queries in, r parity queries out.

An encoder is built for queries of one shape and one (k, r). `encode` takes k arrays of shape
(*batch, *query_shape) and gives an array of shape (r, *batch, *parity_shape). Images are (channels,
height, width).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import Array, Coder, Shape, namespace, parity_weights
from parity_models.errors import CodeError
from parity_models.options import option
from parity_models.registry import Registry

GRIDS = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 8: (2, 4), 9: (3, 3)}
"""Rows and columns into which k images are tiled."""


class Encoder(Coder):
    """Turns k queries into r parity queries.

    A subclass defines its `name`, its `Options`, `shape`, `fill`, and these flags. `apart`: every
    value of a parity query comes from a single query. `symmetric`: the order of queries makes no
    difference, so no decoder can distinguish the slots. `floating`: it computes with the values of
    queries, which must be floating point. `shape` may set `stacked_axis`, the axis of a parity
    query along which the queries lie one after another, unchanged. It may also set `grid`, the rows
    and columns of tiles, one tile per query, of a parity query that is an image.

    `parity_shape` is the shape of one parity query, without batch axes. Raises CodeError when
    queries of `query_shape` cannot be encoded this way.
    """

    apart: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    floating: ClassVar[bool] = False
    stacked_axis: int | None = None
    grid: tuple[int, int] = (1, 1)

    def __init__(self, k: int, r: int, query_shape: Shape, options: Any = None) -> None:
        super().__init__(k, r, options)
        self.query_shape = query_shape
        self.parity_shape = self.shape()

    def shape(self) -> Shape:
        """Return the shape of one parity query, without batch axes: by default that of a query.

        Raises CodeError for shapes that cannot be encoded.
        """
        return self.query_shape

    @abstractmethod
    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        """Write the parity queries of k checked `queries` (*batch, *query_shape) into `out` (r,
        *batch, *parity_shape), with the array API `xp`.

        It is called for every group, so it should allocate little.
        """

    def encode(self, queries: Sequence[Array]) -> Array:
        """Encode k arrays of shape (*batch, *query_shape) into (r, *batch, *parity_shape).

        All queries have one shape and one dtype, floating point for encoders that compute
        (`floating`). Raises CodeError otherwise.
        """
        first = queries[0]
        batch = self._check(queries)
        xp = namespace(first)
        if self.floating and not _is_floating(first.dtype, xp):
            raise CodeError(
                f"the {self.name} encoder computes with queries and needs floating point, got "
                f"{first.dtype}; convert them or use the stack encoder"
            )
        shape = (self.r, *batch, *self.parity_shape)
        out = xp.empty(shape, dtype=first.dtype, device=first.device)
        self.fill(queries, out, xp)
        return out

    def _check(self, queries: Sequence[Array]) -> Shape:
        """Return the batch axes of the queries. Raises CodeError for queries that do not fit."""
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


@cache
def _is_floating(dtype: Any, xp: Any) -> bool:
    floating: bool = xp.isdtype(dtype, "real floating")
    return floating


class SumEncoder(Encoder):
    """P_j = Σ_i w_ji X_i, with all ones for r = 1 (Kosaian et al., SOSP 2019, section 3.2)."""

    name = "sum"
    floating = True
    symmetric = True

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        _total(queries, xp, out=out[0, ...])
        for j in range(1, self.r):
            row = out[j, ...]
            weights = parity_weights(self.k, self.r)[j]
            xp.multiply(queries[0], float(weights[0]), out=row)
            for query, weight in zip(queries[1:], weights[1:], strict=True):
                row += query * float(weight)


class StackEncoder(Encoder):
    """k queries joined along one of their axes (a feature or channel axis), or a new one.

    Nothing is lost, and only the first layer of the parity model grows. Works for queries of any
    shape and dtype; `axis` indexes the query's own axes, or with `new_axis` the parity query's.
    """

    name = "stack"
    apart = True
    stacked_axis: int

    @dataclass(frozen=True, kw_only=True)
    class Options(Encoder.Options):
        """The encoder's options."""

        axis: int = option(0, "The axis of a query along which queries are joined; -1: the last.")
        new_axis: bool = option(
            False, "Join along a new axis at that place, for queries such as token ids."
        )

    def shape(self) -> Shape:
        rank = len(self.query_shape) + self.options.new_axis
        axis: int = self.options.axis
        if not -rank <= axis < rank:
            raise CodeError(
                f"queries of shape {self.query_shape} have no axis {axis} to stack along"
            )
        self.stacked_axis = axis = axis % rank
        if self.options.new_axis:
            return (*self.query_shape[:axis], self.k, *self.query_shape[axis:])
        shape = list(self.query_shape)
        shape[axis] *= self.k
        return tuple(shape)

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        after = (slice(None),) * (len(self.parity_shape) - self.stacked_axis - 1)
        size = self.parity_shape[self.stacked_axis] // self.k
        for slot, query in enumerate(queries):
            joined = slot if self.options.new_axis else slice(slot * size, (slot + 1) * size)
            out[(..., joined, *after)] = query
        out[1:, ...] = out[:1, ...]


class ConcatenationEncoder(Encoder):
    """k images shrunk by area averaging and tiled into one image of the original size.

    (Kosaian et al., SOSP 2019, section 3.5: the encoder specialised to image tasks.) The same
    parity query serves every row when r > 1; the parity models differ in their initial weights,
    and with subtraction in their training targets.
    """

    name = "concatenation"
    floating = True
    apart = True

    def shape(self) -> Shape:
        if self.k not in GRIDS:
            raise CodeError(
                f"concatenation tiles k = {', '.join(map(str, GRIDS))} images, not k={self.k}; "
                "use one of these or the stack encoder"
            )
        if len(self.query_shape) != 3:
            raise CodeError(
                "concatenation needs images of shape (channels, height, width), got queries of "
                f"shape {self.query_shape}; use the stack or the sum encoder"
            )
        self.grid = rows, columns = GRIDS[self.k]
        _, height, width = self.query_shape
        if height < rows or width < columns:
            raise CodeError(
                f"an image of {height}x{width} cannot hold {rows}x{columns} tiles; "
                "use the stack or the sum encoder"
            )
        return self.query_shape

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        rows, columns = self.grid
        _, height, width = self.query_shape
        tops = [round(height * i / rows) for i in range(rows + 1)]
        lefts = [round(width * j / columns) for j in range(columns + 1)]
        for slot, query in enumerate(queries):
            i, j = divmod(slot, columns)
            tile = out[0, ..., tops[i] : tops[i + 1], lefts[j] : lefts[j + 1]]
            _shrink(query, tile, xp)
        out[1:, ...] = out[:1, ...]


def _shrink(image: Array, tile: Array, xp: Any) -> None:
    """Area-average `image` (..., H, W) into `tile` (..., h, w)."""
    (height, width), (h, w) = image.shape[-2:], tile.shape[-2:]
    if height % h == 0 and width % w == 0:
        down, across = height // h, width // w
        # Rows first: adding whole rows runs at the speed of memory, strided columns do not.
        rows = _total([image[..., y::down, :] for y in range(down)], xp) if down > 1 else image
        _total([rows[..., x::across] for x in range(across)], xp, out=tile)
        tile *= 1 / (down * across)
        return
    for axis, parts in ((-2, h), (-1, w)):
        if image.shape[axis] != parts:
            image = _average(image, parts, axis, xp)
    tile[...] = image


def _average(image: Array, parts: int, axis: int, xp: Any) -> Array:
    """Average along `axis` (-1 or -2) into `parts` equal areas, which may share cells.

    Not a matrix product: BLAS would start threads, which would compete with a server's workers.
    """
    after = (slice(None),) * (-1 - axis)
    cells, weights = _area_cells(image.shape[axis], parts)
    cells = xp.asarray(cells, device=image.device)
    weights = xp.asarray(weights, dtype=image.dtype, device=image.device)
    return _total(
        [
            image[(..., cell, *after)] * xp.reshape(weight, (parts, *[1] * len(after)))
            for cell, weight in zip(cells, weights, strict=True)
        ],
        xp,
    )


def _total(parts: Sequence[Array], xp: Any, out: Array | None = None) -> Array:
    total = xp.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        total += part
    return total


@lru_cache(256)
def _area_cells(length: int, parts: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the cells (of `length`) in each of `parts` equal areas, and their weights.

    Both have shape (cells per area, parts); the weights of an area sum to 1.
    """
    edges = np.arange(parts + 1) * (length / parts)
    first = np.floor(edges[:-1])
    cells = first + np.arange(math.ceil(length / parts) + 1)[:, None]
    lower, upper = np.maximum(edges[:-1], cells), np.minimum(edges[1:], cells + 1)
    weights = np.maximum(upper - lower, 0.0) * (parts / length)
    return np.minimum(cells, length - 1).astype(np.int64), weights


ENCODERS = Registry[Encoder]("encoder", Encoder, SumEncoder, ConcatenationEncoder, StackEncoder)
"""The encoders."""
