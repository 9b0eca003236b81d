"""Garments of Fashion-MNIST on cluttered canvases, in the layout of CUB-200-2011.

Each image holds one whole garment, tinted and of some size, over shapes and scraps of other
garments. Garments of the test set are in test images alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.tasks.task import Split
from parity_models_lab.tasks.localization import BOXES, IMAGES, PICTURES, SPLIT
from parity_models_lab.tasks.making import Progress, new_folder, run_all
from parity_models_lab.tasks.mnist import FashionMnist

SIDE = 64
"""Height and width of an image."""

SIZES = (20, 48)
"""Pixels of a garment's longer side."""

SHAPES, SCRAPS = (4, 10), (2, 6)
"""The numbers of each in an image: from the first to below the second."""

TEST = 5
"""One image in TEST is for tests."""


def make_boxes(
    out: Path,
    *,
    images: int = 10_000,
    seed: int = 0,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Make so many images and their boxes in a new folder `out`; returns the number of images.

    Fashion-MNIST is looked for as its task does, in `data_dir` if it is given. Raises DataError
    where it is not found, for numbers that cannot be, and if there is something at `out`.
    """
    from PIL import Image  # here: evaluation and serving do without it

    if images < 2 * TEST:
        raise DataError(f"{images} images are too few for a test set; make {2 * TEST} or more")

    with new_folder(out) as folder:
        garments = FashionMnist().load(data_dir)
        classes = [name.replace(" ", "_") for name in garments.classes]
        folders = [f"{number:03}.{name}" for number, name in enumerate(classes, 1)]
        for name in folders:
            (folder / PICTURES / name).mkdir(parents=True)

        def make(number: int) -> tuple[str, str, str, str]:
            random = np.random.default_rng((seed, number))
            training = number % TEST != 0
            garment, label = _draw(garments.train if training else garments.test, random)
            canvas = _clutter(garments.train, random)
            left, top, width, height = _paste(canvas, garment, random)
            name = f"{folders[label]}/{number + 1:06}.png"
            Image.fromarray((canvas * 255).astype(np.uint8)).save(folder / PICTURES / name)
            n = number + 1
            return (
                f"{n} {name}",
                f"{n} {left} {top} {width} {height}",
                f"{n} {training:d}",
                f"{n} {label + 1}",
            )

        lines = run_all(make, range(images), progress)
        files = (IMAGES, BOXES, SPLIT, "image_class_labels.txt")
        for file, column in zip(files, zip(*lines, strict=True), strict=True):
            (folder / file).write_text("\n".join(column) + "\n")
        names = "\n".join(f"{number} {name}" for number, name in enumerate(folders, 1))
        (folder / "classes.txt").write_text(names + "\n")
    return images


def _draw(split: Split, random: np.random.Generator) -> tuple[NDArray[Any], int]:
    """Return a garment's pixels (height, width) from 0 to 1, cropped, and its class."""
    row = random.integers(len(split))
    pixels = split.inputs[row, 0] * FashionMnist.deviation + FashionMnist.mean
    rows, columns = (np.flatnonzero((pixels > 0.1).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return _draw(split, random)
    cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cut.clip(0, 1), int(split.labels[row])


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
        garment, _ = _draw(split, random)
        height, width = (max(1, length // 2) for length in garment.shape)
        top, left = random.integers(
            0, (garment.shape[0] - height + 1, garment.shape[1] - width + 1)
        )
        _paste(canvas, garment[top : top + height, left : left + width], random, (8, 20))
    canvas += random.normal(0, 0.03, canvas.shape)
    clipped: NDArray[Any] = np.clip(canvas, 0, 1)
    return clipped


def _paste(
    canvas: NDArray[Any],
    garment: NDArray[Any],
    random: np.random.Generator,
    sizes: tuple[int, int] = SIZES,
) -> tuple[int, int, int, int]:
    """Put a tinted garment on the canvas, anywhere; returns its left, top, width and height."""
    longer = random.integers(*sizes)
    height, width = (max(2, round(n * longer / max(garment.shape))) for n in garment.shape)
    rows = np.arange(height) * garment.shape[0] // height
    columns = np.arange(width) * garment.shape[1] // width
    larger = garment[np.ix_(rows, columns)][..., None]
    top, left = random.integers(0, (SIDE - height + 1, SIDE - width + 1))
    under = canvas[top : top + height, left : left + width]
    tinted = larger * random.uniform(0.5, 1, 3) + random.uniform(0, 0.2)
    under[...] = np.where(larger > 0.1, tinted.clip(0, 1), under)
    return int(left), int(top), width, height
