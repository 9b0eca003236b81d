"""Images: which are small, the grid of cells that is pooled apart, and sequences as images."""

from math import ceil

from torch import Tensor

from parity_models.codes import Code

Shape = tuple[int, ...]
Grid = tuple[int, int]

SMALL = 64
"""Images with a side shorter than this, in pixels, are small. Networks made for photographs shrink
images in their first layers; small images keep their size there."""

PIXELS, MAX_PLACES = 4, 8
"""The side of one cell in pixels, and the most rows and columns of cells."""


def is_small(query_shape: Shape) -> bool:
    """Whether queries are small images."""
    return len(query_shape) == 3 and min(query_shape[1:]) < SMALL


def tiles(code: Code) -> Grid:
    """Return the encoder's grid of tiles if each tile's output is read off alone, else 1 x 1."""
    grid: Grid = code.encoder.grid
    return grid if code.decoder.reads_off else (1, 1)


def places(image_shape: Shape) -> Grid:
    """Return the grid of pooling cells for images that are overlaid, as by sum: one mean over the
    whole feature map would not tell which features belong together."""
    if len(image_shape) != 3:
        return 1, 1
    rows, columns = (max(1, side // PIXELS) for side in image_shape[1:])
    return _few(rows), _few(columns)


def image_shape(shape: Shape) -> Shape:
    """Return the shape (channels, 1, time) of a sequence as an image of one row; other shapes as
    they are.

    The longer axis of a sequence is time; of equal ones the last.
    """
    if len(shape) != 2:
        return shape
    channels, time = sorted(shape)
    return channels, 1, time


def as_images(queries: Tensor, shape: Shape) -> Tensor:
    """Return sequences or images (n, *shape) as images (n, *image_shape(shape))."""
    if len(shape) != 2:
        return queries
    if shape[0] > shape[1]:
        queries = queries.transpose(1, 2)
    return queries.unsqueeze(2)


def _few(places: int) -> int:
    """At most MAX_PLACES: neighbouring cells are joined until there are no more than that."""
    return ceil(places / ceil(places / MAX_PLACES))
