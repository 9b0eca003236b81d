"""Object localization: find the one object in an image, in the layout of CUB-200-2011.

(C. Wah et al.: The Caltech-UCSD Birds-200-2011 Dataset.) `images.txt` numbers the images,
`bounding_boxes.txt` gives each one's box in pixels (x, y, width, height),
`train_test_split.txt` says which are for training. `make_boxes` makes such a folder.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.options import Option
from parity_models.tasks.task import Dataset, Split, hold_out
from parity_models_lab.tasks.folder import FolderTask, normalised

IMAGES, BOXES, SPLIT = "images.txt", "bounding_boxes.txt", "train_test_split.txt"
PICTURES = "images"
MEAN, DEVIATION = 0.45, 0.25
LONGEST = 64 << 20
"""Bytes of a list."""
LARGEST = 100_000_000
"""Pixels of an image: a small file may claim to be one that fills the memory."""
THREADS = 8
"""Pillow decodes outside the interpreter's lock."""

OUTSIDE = 0.05
"""The share of an image by which its box may reach beyond it; then it ends where the image does."""

VALIDATION = 10
"""One of so many training images is held out."""


class Localization(FolderTask):
    """Boxes are left, top, right, bottom, as shares of the image's width and height.

    Images are squeezed into squares.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(FolderTask.Options):
        """The options."""

        side: Annotated[
            int,
            Option("Height and width that images are squeezed into.", at_least=8, at_most=1024),
        ] = 64

    name = "localization"
    metric = "iou"
    flips = True
    places = ("CUB_200_2011", "localization", "")
    needs = (
        f"a folder CUB_200_2011 there with {IMAGES}, {BOXES}, {SPLIT} and {PICTURES}/ (from "
        "https://www.vision.caltech.edu/datasets/cub_200_2011)"
    )

    def holds(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (IMAGES, BOXES, SPLIT))

    def read(self, folder: Path) -> Dataset:
        names = _read_list(folder / IMAGES, 1)
        boxes = _read_list(folder / BOXES, 4)
        split = _read_list(folder / SPLIT, 1)
        if not names or names.keys() != boxes.keys() or names.keys() != split.keys():
            raise DataError(
                f"{IMAGES}, {BOXES} and {SPLIT} in {folder} do not number the same images; fetch "
                "them again"
            )
        root = folder / PICTURES
        paths = [root / name for (name,) in names.values()]
        for path in paths:
            if not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{folder / IMAGES} names a file outside {root}: {path}")
        pixels, sizes = _read_images(paths, self.options.side)
        labels = np.array(
            [
                _edges(boxes[number], size, folder / BOXES)
                for number, size in zip(names, sizes, strict=True)
            ],
            np.float32,
        )
        everything = Split(normalised(pixels, MEAN, DEVIATION), labels)
        flags = [split[number][0] for number in names]
        if strange := set(flags) - {"0", "1"}:
            raise DataError(f"{folder / SPLIT} has {min(strange)!r}, where 1 is train and 0 test")
        training = np.array(flags) == "1"
        rest, test = (everything.take(np.flatnonzero(which)) for which in (training, ~training))
        if not len(rest) or not len(test):
            raise DataError(f"{folder / SPLIT} has no images for training, or none for test")
        train, validation = hold_out(rest, max(1, len(rest) // VALIDATION))
        return Dataset(train, validation, test)


def _read_list(path: Path, fields: int) -> dict[str, list[str]]:
    """Return the lines of an image's number and so many `fields`, by number."""
    if path.stat().st_size > LONGEST:
        raise DataError(f"{path} is larger than a list of images can be; fetch it again")
    lines = {}
    for line in path.read_text("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        number, *rest = line.split(maxsplit=fields)
        if len(rest) != fields:
            raise DataError(f"{path} has a line that is none of its kind: {line[:80]!r}")
        lines[number] = rest
    return lines


def _edges(box: list[str], size: tuple[int, int], path: Path) -> NDArray[np.float64]:
    try:
        left, top, width, height = map(float, box)
    except ValueError:
        left = top = width = height = math.nan
    if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
        raise DataError(f"{path} has a box that is none: {' '.join(box)!r}")
    edges = np.array([left, top, left + width, top + height]) / (size * 2)
    inside = edges.clip(0, 1)
    if np.abs(edges - inside).max() > OUTSIDE or not (inside[2:] > inside[:2]).all():
        raise DataError(
            f"{path} has a box outside its image of {size[0]}x{size[1]}: {' '.join(box)!r}; fetch "
            "it again"
        )
    return inside


def _read_images(
    paths: Sequence[Path], side: int
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Return all images, squeezed into (n, 3, side, side), and their original (width, height).

    Raises DataError with the path of an image that cannot be read.
    """
    pixels = np.empty((len(paths), 3, side, side), np.uint8)

    def read(row: int) -> tuple[int, int]:
        pixels[row], size = _read_image(paths[row], side)
        return size

    with ThreadPoolExecutor(THREADS) as pool:
        return pixels, list(pool.map(read, range(len(paths))))


def _read_image(path: Path, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    from PIL import Image  # here: evaluation and serving do without it

    try:
        with Image.open(path) as image:
            size = image.size
            if size[0] * size[1] > LARGEST:
                raise DataError(f"{path} claims to have {size[0]}x{size[1]} pixels; take it out")
            image.draft("RGB", (2 * side, 2 * side))  # JPEG: decoded no larger than is of use
            small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read as an image ({why}); fetch it again or take it out"
        ) from error
    return np.asarray(small).transpose(2, 0, 1), size
