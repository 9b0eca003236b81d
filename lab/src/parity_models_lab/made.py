"""Boxes made here, in place of CUB-200-2011 (C. Wah et al., 2011): find the object in an image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 64
"""Height and width of an image."""

IMAGES, TEST = 10_000, 5
"""Images, of which one in TEST is for tests."""


def boxes(
    training: NDArray[np.float32], testing: NDArray[np.float32]
) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Return images (n, 3, 64, 64) and the box (n, 4) of a garment in each, to learn and to test.

    Each image holds one whole garment, tinted and of some size, over shapes and scraps of other
    garments. Garments are pixels (n, 28, 28) from 0 to 1, for training and for tests.
    """
    made: tuple[list[Any], list[Any]] = ([], [])
    for number in range(IMAGES):
        random, is_test = np.random.default_rng((0, number)), number % TEST == 0
        garment = _draw(testing if is_test else training, random)
        canvas = _clutter(training, random)
        box = _paste(canvas, garment, random, longer=random.integers(20, 48))
        made[is_test].append(((canvas * 255).astype(np.uint8).transpose(2, 0, 1), box / SIDE))
    parts = [[np.stack(arrays) for arrays in zip(*pairs, strict=True)] for pairs in made]
    return [(pixels, edges.astype(np.float32)) for pixels, edges in parts]


def _draw(garments: NDArray[np.float32], random: np.random.Generator) -> NDArray[Any]:
    """Return a garment's pixels, cropped."""
    pixels = garments[random.integers(len(garments))]
    rows, columns = (np.flatnonzero((pixels > 0.1).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return _draw(garments, random)
    return np.asarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _clutter(garments: NDArray[np.float32], random: np.random.Generator) -> NDArray[Any]:
    """Return a canvas (SIDE, SIDE, 3) from 0 to 1 with shapes and scraps on a shaded ground."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    slope = random.uniform(-0.5, 0.5, (2, 1, 1, 3))
    canvas = random.uniform(0.1, 0.8, 3) + slope[0] * x[..., None] + slope[1] * y[..., None]
    for _ in range(random.integers(4, 10)):
        cx, cy = random.uniform(0, 1, 2)
        w, h = random.uniform(0.05, 0.35, 2)
        dx, dy = np.abs(x - cx) / w, np.abs(y - cy) / h
        inside = np.maximum(dx, dy) < 1 if random.random() < 0.5 else dx**2 + dy**2 < 1
        canvas[inside] = 0.4 * canvas[inside] + 0.6 * random.uniform(0, 1, 3)
    for _ in range(random.integers(2, 6)):
        garment = _draw(garments, random)
        height, width = (max(1, length // 2) for length in garment.shape)
        top, left = random.integers(0, np.subtract(garment.shape, (height, width)) + 1)
        scrap = garment[top : top + height, left : left + width]
        _paste(canvas, scrap, random, longer=random.integers(8, 20))
    canvas += random.normal(0, 0.03, canvas.shape)
    return np.asarray(np.clip(canvas, 0, 1))


def _paste(
    canvas: NDArray[Any], garment: NDArray[Any], random: np.random.Generator, longer: np.int64
) -> NDArray[np.int64]:
    """Put a tinted garment on the canvas, anywhere, its `longer` side of so many pixels; return its
    left, top, right and bottom."""
    height, width = (max(2, round(n * longer / max(garment.shape))) for n in garment.shape)
    rows = np.arange(height) * garment.shape[0] // height
    columns = np.arange(width) * garment.shape[1] // width
    larger = garment[np.ix_(rows, columns)][..., None]
    top, left = random.integers(0, (SIDE - height + 1, SIDE - width + 1))
    under = canvas[top : top + height, left : left + width]
    tinted = larger * random.uniform(0.5, 1, 3) + random.uniform(0, 0.2)
    under[...] = np.where(larger > 0.1, tinted.clip(0, 1), under)
    return np.array([left, top, left + width, top + height])
