"""Image files as arrays of one size, and tasks that have them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.options import Option
from parity_models.tasks.task import FolderTask

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LARGEST = 100_000_000
"""Pixels of an image: a small file may claim to be one that fills the memory."""

THREADS = 8
"""Pillow decodes outside the interpreter's lock."""


class ImageTask(FolderTask):
    """A task whose queries are image files, squeezed into squares."""

    @dataclass(frozen=True, kw_only=True)
    class Options(FolderTask.Options):
        """What can be set."""

        side: Annotated[
            int,
            Option("Height and width that images are squeezed into.", at_least=8, at_most=1024),
        ] = 64


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def read_images(
    paths: Sequence[Path], side: int
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """All images, squeezed into (n, 3, side, side), and their original (width, height).

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
