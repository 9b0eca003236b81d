"""The IDX format of MNIST and its kin: a header of big-endian sizes, then the values.

(Y. LeCun, C. Cortes, C. Burges: The MNIST database.) Files may be gzipped.
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.tasks.task import Split, normalised

UNSIGNED_BYTE = 0x08
LARGEST = 1 << 31
"""Bytes of values that a file may hold: no such dataset is near it, a damaged header may be."""

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the images and labels of each split, with or without .gz behind them."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file, gzipped or not.

    Raises DataError for a file that is not IDX, truncated, or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != UNSIGNED_BYTE:
                raise DataError(
                    f"{path} is not an IDX file of unsigned bytes (it starts with "
                    f"{magic.hex(' ') or 'nothing'}); fetch it again"
                )
            rank = magic[3]
            sizes = file.read(4 * rank)
            shape = struct.unpack(f">{rank}I", sizes) if len(sizes) == 4 * rank else ()
            size = prod(shape)
            if not shape or not 0 < size <= LARGEST:
                raise DataError(f"{path} has a damaged header (sizes {shape}); fetch it again")
            values = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(values) != size:
        has = "fewer" if len(values) < size else "more"
        raise DataError(f"{path} holds {has} values than its header {shape} says; fetch it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def find_idx(folder: Path, name: str) -> Path | None:
    """The file called `name` or `name`.gz in `folder`, if it is there."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def holds_splits(folder: Path) -> bool:
    """Return whether all four files of the MNIST layout are in `folder`."""
    return all(find_idx(folder, name) for name in TRAIN + TEST)


def read_split(folder: Path, names: tuple[str, str], mean: float, deviation: float) -> Split:
    """Images (n, 1, height, width) and labels of one split of the MNIST layout in `folder`.

    Pixels are taken as 0 to 1, then normalised by `mean` and `deviation`. Raises DataError if
    a file is missing or unsound or the two do not belong together.
    """
    images, labels = (_read_arrays(folder, name) for name in names)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{names[0]} {images.shape} and {names[1]} {labels.shape} in {folder} do not belong "
            "together: images are (n, height, width) and labels (n,); fetch both again"
        )
    return Split(normalised(images[:, None], mean, deviation), labels.astype(np.int64))


def _read_arrays(folder: Path, name: str) -> NDArray[np.uint8]:
    path = find_idx(folder, name)
    if path is None:
        raise DataError(f"there is no {name} or {name}.gz in {folder}")
    return read_idx(path)
