"""Images: which are small, how many places of one are seen apart, and sequences as images."""

from math import ceil

from torch import Tensor

from parity_models.codes import Code, ConcatenationEncoder, SeparateDecoder
from parity_models.codes.encoders.concatenation import GRIDS

Shape = tuple[int, ...]
Grid = tuple[int, int]

SMALL = 64
"""Images with a shorter side than this are small: networks keep their size in the first layers,
which were made for photographs four times as large."""

PIXELS, MAX_PLACES = 4, 8
"""The sides of what one place stands for, and the most rows and columns of places."""


def is_small(query_shape: Shape) -> bool:
    """Are queries small images?"""
    return len(query_shape) == 3 and min(query_shape[1:]) < SMALL


def tiles(code: Code) -> Grid:
    """Those of tiled images where each gives an output of its own, else one for all."""
    tiled = isinstance(code.encoder, ConcatenationEncoder) and isinstance(
        code.decoder, SeparateDecoder
    )
    return GRIDS[code.k] if tiled else (1, 1)


def places(image_shape: Shape) -> Grid:
    """For images that are laid over one another: the mean of the whole map would not say where in
    them a feature is, and so not which features belong together."""
    if len(image_shape) != 3:
        return 1, 1
    rows, columns = (max(1, side // PIXELS) for side in image_shape[1:])
    return _few(rows), _few(columns)


def image_shape(shape: Shape) -> Shape:
    """The shape (channels, 1, time) of a sequence as an image of one row; other shapes as they are.

    The longer axis of a sequence is time; of equal ones the last.
    """
    if len(shape) != 2:
        return shape
    channels, time = sorted(shape)
    return channels, 1, time


def as_images(queries: Tensor, shape: Shape) -> Tensor:
    """`queries` (n, *shape), of sequences or images, as images (n, *image_shape(shape))."""
    if len(shape) != 2:
        return queries
    if shape[0] > shape[1]:
        queries = queries.transpose(1, 2)
    return queries.unsqueeze(2)


def _few(places: int) -> int:
    """At most MAX_PLACES, by joining as many neighbours to one as that takes."""
    return ceil(places / ceil(places / MAX_PLACES))
