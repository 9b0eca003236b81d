"""The concatenation encoder."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from parity_models.codes.coder import Array
from parity_models.codes.encoders.encoder import Encoder
from parity_models.errors import CodeError

GRIDS = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 8: (2, 4), 9: (3, 3)}
"""Rows and columns into which k images are tiled."""


class ConcatenationEncoder(Encoder):
    """k images shrunk by area averaging and tiled into one image of the original size.

    (Kosaian et al., SOSP 2019, section 3.5: the encoder specialised to image tasks.) The same
    parity query serves every row when r > 1; the parity models differ in their initial weights,
    and with subtraction in what they are trained towards.
    """

    name = "concatenation"
    floating = True
    apart = True

    def shape(self) -> tuple[int, ...]:
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
        tops, lefts = _edges(height, rows), _edges(width, columns)
        first = out[0, ...]
        for slot, query in enumerate(queries):
            i, j = divmod(slot, columns)
            tile = first[..., tops[i] : tops[i + 1], lefts[j] : lefts[j + 1]]
            _shrink(query, tile, xp)
        for j in range(1, self.r):
            out[j, ...] = first


def _edges(length: int, parts: int) -> list[int]:
    return [round(length * part / parts) for part in range(parts + 1)]


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

    Not a product of matrices: their library would start threads, which a server's frontend must
    not have beside its workers.
    """
    after = (slice(None),) * (-1 - axis)
    cells, weights = _area_cells(image.shape[axis], parts)
    cells = xp.asarray(cells, device=device(image))
    weights = xp.asarray(weights, dtype=image.dtype, device=device(image))
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
    """The cells, of `length`, of each of `parts` equal areas, and their weights.

    Both have shape (cells per area, parts); the weights of an area sum to 1.
    """
    edges = np.arange(parts + 1) * (length / parts)
    first = np.floor(edges[:-1])
    cells = first + np.arange(math.ceil(length / parts) + 1)[:, None]
    lower, upper = np.maximum(edges[:-1], cells), np.minimum(edges[1:], cells + 1)
    weights = np.maximum(upper - lower, 0.0) * (parts / length)
    return np.minimum(cells, length - 1).astype(np.int64), weights
