"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 of 10 or 100 kinds.

(A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.) Read from the
*binary version*: records of one or two label bytes and 3,072 bytes of pixels, red, green, blue.
The python version is a pickle, which could run anything, and is not read.
"""

from pathlib import Path

import numpy as np

from parity_models.errors import DataError
from parity_models.tasks.task import Dataset, Split, hold_out
from parity_models_lab.tasks.folder import FolderTask, normalised

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
LARGEST = 100_000
"""Images that a file may hold; the datasets' hold 50,000 at most."""

VALIDATION = 10
"""One of so many training images is held out: 5,000 of 50,000."""


class Cifar(FolderTask):
    """The format that both share. The label is the last of `label_bytes` bytes."""

    flips = True
    label_bytes: int
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def holds(self, folder: Path) -> bool:
        return all(
            (folder / name).is_file()
            for name in (*self.train_files, self.test_file, self.names_file)
        )

    def read(self, folder: Path) -> Dataset:
        classes = tuple((folder / self.names_file).read_text("utf-8", "replace").split())
        parts = [self._read_file(folder / name, len(classes)) for name in self.train_files]
        rest = Split(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )
        train, validation = hold_out(rest, len(rest) // VALIDATION)
        return Dataset(
            train, validation, self._read_file(folder / self.test_file, len(classes)), classes
        )

    def _read_file(self, path: Path, classes: int) -> Split:
        record = self.label_bytes + PIXELS
        size = path.stat().st_size
        if size % record or not 0 < size <= LARGEST * record:
            raise DataError(
                f"{path} holds {size:,} bytes, which is no number of records of {record} bytes; "
                "fetch it again"
            )
        records = np.fromfile(path, np.uint8).reshape(-1, record)
        labels = records[:, self.label_bytes - 1].astype(np.int64)
        if labels.max() >= classes:
            raise DataError(
                f"{path} has a label {labels.max()}, but {self.names_file} names {classes} "
                "classes; fetch both again"
            )
        mean, deviation = (np.array(v).reshape(3, 1, 1) for v in (self.mean, self.deviation))
        pixels = records[:, self.label_bytes :].reshape(-1, *SHAPE)
        return Split(normalised(pixels, mean, deviation), labels)


class Cifar10(Cifar):
    """CIFAR-10 (Krizhevsky, 2009), top-1 accuracy."""

    name = "cifar-10"
    metric = "top-1"
    label_bytes = 1
    train_files = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    test_file = "test_batch.bin"
    names_file = "batches.meta.txt"
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    places = ("cifar-10-batches-bin", "cifar-10", "")
    needs = (
        "the folder cifar-10-batches-bin of the binary version there (data_batch_1.bin to 5, "
        "test_batch.bin, batches.meta.txt, from https://www.cs.toronto.edu/~kriz/cifar.html); the "
        "python version is not read"
    )


class Cifar100(Cifar):
    """CIFAR-100 (Krizhevsky, 2009), top-5 accuracy."""

    name = "cifar-100"
    metric = "top-5"
    label_bytes = 2
    train_files = ("train.bin",)
    test_file = "test.bin"
    names_file = "fine_label_names.txt"
    mean, deviation = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    places = ("cifar-100-binary", "cifar-100", "")
    needs = (
        "the folder cifar-100-binary of the binary version there (train.bin, test.bin, "
        "fine_label_names.txt, from https://www.cs.toronto.edu/~kriz/cifar.html); the python "
        "version is not read"
    )
