"""The paper's images, and digits and diabetes, which come with scikit-learn.

MNIST and its kin are files in the IDX format: a header of big-endian sizes, then the values; they
may be gzipped. (Y. LeCun, C. Cortes, C. Burges: The MNIST database, 1998. H. Xiao, K. Rasul,
R. Vollgraf: Fashion-MNIST, 2017. A. Krizhevsky: Learning Multiple Layers of Features from Tiny
Images, 2009.)
"""

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.task import Dataset, FolderTask, Split, Task, hold_out, normalised

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the images and labels of each split, with or without .gz behind them."""


class Digits(Task):
    """1,797 handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition, UCI 1998), of which
    1,200 are for training, 197 for validation and 400 for test."""

    name = "digits"
    metric = "top-1"

    def load(self, folder: Path | None = None) -> Dataset:
        from sklearn.datasets import load_digits  # here: not needed elsewhere

        images, labels = load_digits(return_X_y=True)
        # Pixels are from 0 to 16; their mean and deviation are those of all images.
        inputs = ((images - 4.884) / 6.017).astype(np.float32).reshape(-1, 1, 8, 8)
        rest, test = hold_out(Split(inputs, labels.astype(np.int64)), 400)
        train, validation = hold_out(rest, 197)
        return Dataset(train, validation, test, tuple(map(str, range(10))))


class Diabetes(Task):
    """442 patients (Efron et al.: Least Angle Regression, 2004); all columns and labels are scaled
    to mean 0 and deviation 1."""

    name = "diabetes"
    metric = "r2"

    def load(self, folder: Path | None = None) -> Dataset:
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
        train, validation = hold_out(rest, len(rest) // 12)  # 5,000 of 60,000
        return Dataset(train, validation, test, self.classes)

    def _read_split(self, folder: Path, names: tuple[str, str]) -> Split:
        images, labels = (read_idx(folder, name) for name in names)
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{folder} does not hold {self.name}: {names[0]} is of shape {images.shape} and "
                f"{names[1]} of {labels.shape}; fetch both again"
            )
        return Split(
            normalised(images[:, None], self.mean, self.deviation), labels.astype(np.int64)
        )


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


class Cifar10(FolderTask):
    """CIFAR-10: 60,000 colour images of ten kinds of animals and vehicles.

    Read from the *binary version*: records of a label byte and 3,072 bytes of pixels, red, green,
    blue. The python version is a pickle, which could run anything, and is not read.
    """

    name = "cifar-10"
    metric = "top-1"
    flips = True
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    mark = "test_batch.bin"
    places = ("cifar-10-batches-bin", "cifar-10", "")
    needs = (
        "the folder cifar-10-batches-bin of the binary version there (data_batch_1.bin to 5, "
        "test_batch.bin, batches.meta.txt, from https://www.cs.toronto.edu/~kriz/cifar.html); the "
        "python version is not read"
    )

    def read(self, folder: Path) -> Dataset:
        classes = tuple((folder / "batches.meta.txt").read_text("utf-8", "replace").split())
        rest = self._read_split(*(folder / f"data_batch_{i}.bin" for i in range(1, 6)))
        train, validation = hold_out(rest, len(rest) // 10)
        return Dataset(train, validation, self._read_split(folder / self.mark), classes)

    def _read_split(self, *files: Path) -> Split:
        records = np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(-1, 3073)
        mean, deviation = (np.reshape(each, (3, 1, 1)) for each in (self.mean, self.deviation))
        pixels = records[:, 1:].reshape(-1, 3, 32, 32)
        return Split(normalised(pixels, mean, deviation), records[:, 0].astype(np.int64))


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file, gzipped or not.

    Raises DataError for a file that is not IDX, truncated, or longer than its header says.
    """
    zipped = folder / f"{name}.gz"
    try:
        is_zipped = zipped.exists()
        content = (zipped if is_zipped else folder / name).read_bytes()
        content = gzip.decompress(content) if is_zipped else content
        axes = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError("it begins otherwise")
        shape = np.frombuffer(content, ">u4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(
            f"{folder / name} is not a whole IDX file of unsigned bytes ({error}); fetch it again"
        ) from error
