"""MNIST and Fashion-MNIST, and digits and diabetes, which come with scikit-learn.

MNIST and its kin are files in the IDX format: a header of big-endian sizes, then the values; they
may be gzipped. (Y. LeCun, C. Cortes, C. Burges: The MNIST database, 1998. H. Xiao, K. Rasul,
R. Vollgraf: Fashion-MNIST, 2017.)
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.folder import FolderTask, normalised
from parity_models_lab.tasks.task import Dataset, Split, Task, hold_out

UNSIGNED_BYTES = b"\0\0\x08"
"""The start of a file of them."""

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the images and labels of each split, with or without .gz behind them."""

VALIDATION = 12
"""One in VALIDATION training images is held out: 5,000 of 60,000."""

SHAPE = (28, 28)


class Digits(Task):
    """1,797 handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition, UCI 1998)."""

    name = "digits"
    metric = "top-1"

    mean, deviation = 4.884, 6.017  # of the pixels, from 0 to 16
    test, validation = 400, 197

    def load(self, folder: Path | None = None) -> Dataset:
        """1,200 digits to train on, 197 for validation, 400 for test; `folder` is not needed."""
        from sklearn.datasets import load_digits  # here: not needed elsewhere

        images, labels = load_digits(return_X_y=True)
        inputs = ((images - self.mean) / self.deviation).astype(np.float32).reshape(-1, 1, 8, 8)
        rest, test = hold_out(Split(inputs, labels.astype(np.int64)), self.test)
        train, validation = hold_out(rest, self.validation)
        return Dataset(train, validation, test, tuple(map(str, range(10))))


class Diabetes(Task):
    """442 patients (Efron et al.: Least Angle Regression, 2004); all columns and labels are scaled
    to mean 0 and deviation 1."""

    name = "diabetes"
    metric = "r2"

    def load(self, folder: Path | None = None) -> Dataset:
        """284 rows to train on, 70 for validation, 88 for test; `folder` is not needed."""
        from sklearn.datasets import load_diabetes  # here: not needed elsewhere

        rows, labels = load_diabetes(return_X_y=True)
        everything = Split(_scaled(rows), _scaled(labels[:, None]))
        rest, test = hold_out(everything, len(rows) // 5)
        train, validation = hold_out(rest, len(rest) // 5)
        return Dataset(train, validation, test)


def _scaled(columns: NDArray[np.float64]) -> NDArray[np.float32]:
    scaled: NDArray[np.float64] = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return scaled.astype(np.float32)


class Mnist(FolderTask):
    """MNIST: 70,000 handwritten digits."""

    name = "mnist"
    metric = "top-1"
    mean, deviation = 0.1307, 0.3081
    classes: tuple[str, ...] = tuple(map(str, range(10)))
    mark = f"{TEST[0]}*"
    places = ("mnist", "MNIST/raw", "")
    needs = (
        f"{', '.join(TRAIN + TEST)}, gzipped or not, there or in its folder mnist; they come "
        "with most machine-learning libraries' downloads of MNIST"
    )

    def read(self, folder: Path) -> Dataset:
        rest, test = (self._read_split(folder, names) for names in (TRAIN, TEST))
        for split in (rest, test):
            if split.inputs.shape[2:] != SHAPE or split.labels.max() >= len(self.classes):
                raise DataError(
                    f"{folder} does not hold {self.name}: its images are "
                    f"{split.inputs.shape[2:]} with labels up to {split.labels.max()}, not "
                    "(28, 28) with labels up to 9"
                )
        train, validation = hold_out(rest, len(rest) // VALIDATION)
        return Dataset(train, validation, test, self.classes)

    def _read_split(self, folder: Path, names: tuple[str, str]) -> Split:
        images, labels = (read_idx(_find(folder, name)) for name in names)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{names[0]} {images.shape} and {names[1]} {labels.shape} in {folder} do not "
                "belong together: images are (n, height, width) and labels (n,); fetch both again"
            )
        inputs = normalised(images[:, None], self.mean, self.deviation)
        return Split(inputs, labels.astype(np.int64))


class FashionMnist(Mnist):
    """Fashion-MNIST: 70,000 garments, in the layout of MNIST."""

    name = "fashion-mnist"
    flips = True
    mean, deviation = 0.2860, 0.3530
    classes = (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    places = ("fashion-mnist", "FashionMNIST/raw", "")
    installed: ClassVar[tuple[Path, ...]] = (Path("/usr/share/datasets"),)
    needs = (
        f"{', '.join(TRAIN + TEST)}, gzipped or not, there or in its folder fashion-mnist; they "
        "come from https://github.com/zalandoresearch/fashion-mnist, or with the Debian package "
        "dataset-fashion-mnist"
    )


class FashionMnistPixels(FashionMnist):
    """Fashion-MNIST as the paper's training code takes it: the pixels that it adds up are not
    normalised."""

    name = "fashion-mnist-pixels"
    mean, deviation = 0.0, 1.0


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file, gzipped or not.

    Raises DataError for a file that is not IDX, truncated, or longer than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    start = 4 + 4 * content[3] if content[:3] == UNSIGNED_BYTES and len(content) > 3 else 0
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if 4 < start <= len(content) else ()
    if not shape or len(content) != start + prod(shape):
        raise DataError(f"{path} is not a whole IDX file of unsigned bytes; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    gzipped = folder / f"{name}.gz"
    return gzipped if gzipped.is_file() else folder / name
