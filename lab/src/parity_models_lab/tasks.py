"""The paper's data sets, by the names of their tasks, and data made in place of two of them.

MNIST and its kin are files in the IDX format: a header of big-endian sizes, then the values; they
may be gzipped. (Y. LeCun, C. Cortes, C. Burges: The MNIST database, 1998. H. Xiao, K. Rasul,
R. Vollgraf: Fashion-MNIST, 2017. A. Krizhevsky: Learning Multiple Layers of Features from Tiny
Images, 2009.) CIFAR-10 is read from its binary version, records of a label byte and 3,072 bytes of
pixels, as the python version is a pickle, which could run anything.
"""

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, UserError
from parity_models.tasks.metrics import Labels
from parity_models_lab import made

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every run, whatever its seed."""

INSTALLED = Path("/usr/share/datasets")
"""The folder of Debian's packages of data sets."""

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the images and labels of each split, with or without .gz behind them."""

CLASSES = 10
"""The classes of the digits, of MNIST and its kin, and of CIFAR-10."""


@dataclass(frozen=True)
class Split:
    """Queries, float32 (n, *input_shape), normalised as models get them, and their labels."""

    inputs: NDArray[np.float32]
    labels: Labels

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return the queries at `rows`, in that order."""
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on. Labels
    number that many `classes`; without classes they are of a prediction's shape."""

    train: Split
    validation: Split
    test: Split
    classes: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.classes,) if self.classes else self.train.labels.shape[1:]


@dataclass(frozen=True)
class Task:
    """A data set to learn, and the metric (of `METRICS`) that judges predictions. `flips`: training
    may mirror queries left to right. `load` raises DataError where data are missing or damaged."""

    name: str
    metric: str
    load: Callable[[], Dataset]
    flips: bool = False


def find_task(name: str) -> Task:
    """Return the task of this name. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def digits() -> Dataset:
    """Return 1,797 handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition, UCI 1998)."""
    from sklearn.datasets import load_digits  # here: not needed elsewhere

    images, labels = load_digits(return_X_y=True)
    # Pixels are from 0 to 16; their mean and deviation are those of all images.
    inputs = ((images - 4.884) / 6.017).astype(np.float32).reshape(-1, 1, 8, 8)
    rest, test = _hold_out(Split(inputs, labels.astype(np.int64)), 400)
    return Dataset(*_hold_out(rest, 197), test, CLASSES)


def diabetes() -> Dataset:
    """Return 442 patients (Efron et al.: Least Angle Regression, 2004); all columns and labels are
    scaled to mean 0 and deviation 1."""
    from sklearn.datasets import load_diabetes  # here: not needed elsewhere

    rows, labels = load_diabetes(return_X_y=True)
    both = np.column_stack([rows, labels])
    scaled = ((both - both.mean(axis=0)) / both.std(axis=0)).astype(np.float32)
    rest, test = _hold_out(Split(scaled[:, :-1], scaled[:, -1:]), len(rows) // 5)
    return Dataset(*_hold_out(rest, len(rest) // 5), test)


def idx_images(name: str, mean: float, deviation: float) -> Dataset:
    """Return 70,000 images in the layout of MNIST, from the folder of this name."""
    folder = _folder(name, TEST[0], f"{', '.join(TRAIN + TEST)}, gzipped or not,")
    splits = []
    for names in (TRAIN, TEST):
        images, labels = (read_idx(folder, each) for each in names)
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{folder} does not hold {name}: {names[0]} is of shape {images.shape} and "
                f"{names[1]} of {labels.shape}; fetch both again"
            )
        splits.append(_labelled(folder, images[:, None], labels, mean, deviation))
    rest, test = splits
    return Dataset(*_hold_out(rest, len(rest) // 12), test, CLASSES)  # 5,000 of 60,000


def cifar_10() -> Dataset:
    """Return CIFAR-10: 60,000 colour images of ten kinds of animals and vehicles."""
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    needs = f"{', '.join(files)} of the binary version (the python version is not read)"
    folder = _folder("cifar-10-batches-bin", files[-1], needs)
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    try:
        read = [np.fromfile(folder / file, np.uint8).reshape(-1, 3073) for file in files]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {error}; fetch the data again") from error
    rest, test = (
        _labelled(folder, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], mean, deviation)
        for records in (np.concatenate(read[:-1]), read[-1])
    )
    return Dataset(*_hold_out(rest, len(rest) // 10), test, CLASSES)


def made_boxes() -> Dataset:
    """Return images with a garment of Fashion-MNIST each, and its box in shares of the image."""
    garments = idx_images("fashion-mnist", 0.0, 1.0)
    rest, test = (
        Split(_normalised(pixels, 0.45, 0.25), boxes)
        for pixels, boxes in made.boxes(garments.train.inputs[:, 0], garments.test.inputs[:, 0])
    )
    return Dataset(*_hold_out(rest, max(1, len(rest) // 10)), test)


def made_speech() -> Dataset:
    """Return words as spectrograms; of ten speakers one is for validation and one for test."""
    cast = range(made.SPEAKERS)
    parts = ([s for s in cast if s % 10 > 1], cast[1::10], cast[::10])
    train, validation, test = (Split(*made.speech(part)) for part in parts)
    return Dataset(train, validation, test, len(made.WORDS))


TASKS = {
    task.name: task
    for task in (
        Task("digits", "top-1", digits),
        Task("mnist", "top-1", partial(idx_images, "mnist", 0.1307, 0.3081)),
        Task("fashion-mnist", "top-1", partial(idx_images, "fashion-mnist", 0.2860, 0.3530), True),
        # The paper's training code adds up pixels that are not normalised.
        Task("fashion-mnist-pixels", "top-1", partial(idx_images, "fashion-mnist", 0, 1), True),
        Task("cifar-10", "top-1", cifar_10, True),
        Task("diabetes", "r2", diabetes),
        Task("made-boxes", "iou", made_boxes, True),
        Task("made-speech", "top-1", made_speech),
    )
}


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, gzipped or not. Raises DataError."""
    file, zipped = folder / name, folder / f"{name}.gz"
    try:
        is_zipped = zipped.exists()
        content = gzip.decompress(zipped.read_bytes()) if is_zipped else file.read_bytes()
        axes = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError("it begins otherwise")
        shape = np.frombuffer(content, ">u4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(
            f"{file} is not a whole IDX file of unsigned bytes ({error}); fetch it again"
        ) from error


def _folder(name: str, file: str, needs: str) -> Path:
    """Return the folder of this name with `file`, gzipped or not, in a folder of data sets."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"
    own = Path(os.environ.get("PARM_DATA") or cache)
    for folder in (own / name, INSTALLED / name):
        if (folder / file).exists() or (folder / f"{file}.gz").exists():
            return folder
    raise DataError(
        f"the data are not in {own / name}: put {needs} there; the variable PARM_DATA names the "
        "folder of data sets"
    )


def _hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))


def _labelled(
    folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8], mean: Any, deviation: Any
) -> Split:
    if not len(labels) or labels.max() >= CLASSES:
        raise DataError(f"{folder} has no labels, or more than 0 to 9; fetch the data again")
    return Split(_normalised(pixels, mean, deviation), labels.astype(np.int64))


def _normalised(pixels: NDArray[np.uint8], mean: Any, deviation: Any) -> NDArray[np.float32]:
    """Return pixels (n, channels, height, width) of 0 to 255 as 0 to 1, less `mean` and over
    `deviation`, numbers or one for each channel."""
    inputs = pixels.astype(np.float32)
    inputs /= 255
    inputs -= np.reshape(mean, (-1, 1, 1))
    inputs /= np.reshape(deviation, (-1, 1, 1))
    return inputs
