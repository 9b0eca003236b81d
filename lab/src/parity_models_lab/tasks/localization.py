"""Object localization: find the one object in an image.

`Localization` reads the layout of CUB-200-2011 (C. Wah et al.: The Caltech-UCSD Birds-200-2011
Dataset): `images.txt` numbers the images, `bounding_boxes.txt` gives each one's box in pixels (x,
y, width, height), `train_test_split.txt` says which are for training. `MadeBoxes` stands in for it
where it cannot be had.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.datasets import FashionMnist
from parity_models_lab.tasks.task import Dataset, FolderTask, Split, Task, hold_out, normalised

SIDE = 64
"""Height and width that images are squeezed into."""
OUTSIDE = 0.05
"""The share of an image by which its box may reach beyond it; then it ends where the image does."""


class Localization(FolderTask):
    """Boxes are left, top, right, bottom, as shares of the image's width and height.

    Images are squeezed into squares.
    """

    name = "localization"
    metric = "iou"
    flips = True
    mark = "bounding_boxes.txt"
    places = ("CUB_200_2011", "localization", "")
    needs = (
        "a folder CUB_200_2011 there with images.txt, bounding_boxes.txt, train_test_split.txt and "
        "images/ (from https://www.vision.caltech.edu/datasets/cub_200_2011)"
    )

    def read(self, folder: Path) -> Dataset:
        names = np.loadtxt(folder / "images.txt", dtype=np.str_)[:, 1]
        boxes = np.loadtxt(folder / self.mark)[:, 1:]
        training = np.loadtxt(folder / "train_test_split.txt")[:, 1] == 1
        if boxes.shape != (len(names), 4) or len(training) != len(names):
            raise DataError(
                f"the lists in {folder} do not number the same images; fetch them again"
            )
        paths = [folder / "images" / name for name in names]
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            images = list(pool.map(_read_image, paths))
        edges = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        edges /= np.array([(*size, *size) for _, size in images])
        inside = edges.clip(0, 1)
        # Not a number is in no range.
        sound = (np.abs(edges - inside) <= OUTSIDE).all(1) & (inside[:, 2:] > inside[:, :2]).all(1)
        for name, box in zip(names[~sound], boxes[~sound], strict=True):
            raise DataError(f"{folder / self.mark} has a box that is not in {name}: {box.tolist()}")
        return _dataset(np.stack([pixels for pixels, _ in images]), inside, training)


def _dataset(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float64], training: NDArray[np.bool_]
) -> Dataset:
    everything = Split(normalised(pixels, 0.45, 0.25), boxes.astype(np.float32))
    rest, test = (everything.take(np.flatnonzero(which)) for which in (training, ~training))
    return Dataset(*hold_out(rest, max(1, len(rest) // 10)), test)


def _read_image(path: Path) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return an image, squeezed into (3, SIDE, SIDE), and its original (width, height)."""
    from PIL import Image  # here: evaluation and serving do without it

    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG: decoded no larger than is of use
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image ({error}); fetch it again or take it out") from error
    return np.asarray(small).transpose(2, 0, 1), size


# Made images

SIZES, SCRAP_SIZES = (20, 48), (8, 20)
"""Pixels of the longer side of a garment, and of a scrap."""

SHAPES, SCRAPS = (4, 10), (2, 6)
"""The numbers of each in an image: from the first to below the second."""

IMAGES, TEST = 10_000, 5
"""Images, of which one in TEST is for tests."""


class MadeBoxes(Task):
    """Garments of Fashion-MNIST on cluttered canvases.

    Each image holds one whole garment, tinted and of some size, over shapes and scraps of other
    garments. Garments of the test set are in test images alone.
    """

    name = "made-boxes"
    metric = "iou"
    flips = True

    def load(self, folder: Path | None = None) -> Dataset:
        garments = FashionMnist().load(folder)
        training = np.arange(IMAGES) % TEST != 0
        made = []
        for number, is_training in enumerate(training):
            random = np.random.default_rng((0, number))
            garment = _draw(garments.train if is_training else garments.test, random)
            canvas = _clutter(garments.train, random)
            box = _paste(canvas, garment, random, SIZES)
            made.append(((canvas * 255).astype(np.uint8).transpose(2, 0, 1), box))
        pixels, boxes = (np.stack(parts) for parts in zip(*made, strict=True))
        return _dataset(pixels, boxes / SIDE, training)


def _draw(split: Split, random: np.random.Generator) -> NDArray[Any]:
    """Return a garment's pixels (height, width) from 0 to 1, cropped."""
    row = random.integers(len(split))
    pixels = split.inputs[row, 0] * FashionMnist.deviation + FashionMnist.mean
    rows, columns = (np.flatnonzero((pixels > 0.1).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return _draw(split, random)
    cut: NDArray[Any] = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cut.clip(0, 1)


def _clutter(split: Split, random: np.random.Generator) -> NDArray[Any]:
    """Return a canvas (SIDE, SIDE, 3) from 0 to 1 with shapes and scraps on a shaded ground."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    slope = random.uniform(-0.5, 0.5, (2, 1, 1, 3))
    canvas = random.uniform(0.1, 0.8, 3) + slope[0] * x[..., None] + slope[1] * y[..., None]
    for _ in range(random.integers(*SHAPES)):
        cx, cy = random.uniform(0, 1, 2)
        w, h = random.uniform(0.05, 0.35, 2)
        dx, dy = np.abs(x - cx) / w, np.abs(y - cy) / h
        inside = np.maximum(dx, dy) < 1 if random.random() < 0.5 else dx**2 + dy**2 < 1
        canvas[inside] = 0.4 * canvas[inside] + 0.6 * random.uniform(0, 1, 3)
    for _ in range(random.integers(*SCRAPS)):
        garment = _draw(split, random)
        height, width = (max(1, length // 2) for length in garment.shape)
        top, left = random.integers(
            0, (garment.shape[0] - height + 1, garment.shape[1] - width + 1)
        )
        _paste(canvas, garment[top : top + height, left : left + width], random, SCRAP_SIZES)
    canvas += random.normal(0, 0.03, canvas.shape)
    return np.asarray(np.clip(canvas, 0, 1))


def _paste(
    canvas: NDArray[Any], garment: NDArray[Any], random: np.random.Generator, sizes: tuple[int, int]
) -> NDArray[np.int64]:
    """Put a tinted garment on the canvas, anywhere; return its left, top, right and bottom."""
    longer = random.integers(*sizes)
    height, width = (max(2, round(n * longer / max(garment.shape))) for n in garment.shape)
    rows = np.arange(height) * garment.shape[0] // height
    columns = np.arange(width) * garment.shape[1] // width
    larger = garment[np.ix_(rows, columns)][..., None]
    top, left = random.integers(0, (SIDE - height + 1, SIDE - width + 1))
    under = canvas[top : top + height, left : left + width]
    tinted = larger * random.uniform(0.5, 1, 3) + random.uniform(0, 0.2)
    under[...] = np.where(larger > 0.1, tinted.clip(0, 1), under)
    return np.array([left, top, left + width, top + height])
