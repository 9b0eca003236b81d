"""CIFAR-10: 60,000 colour images of 32x32 of 10 kinds of animals and vehicles.

(A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.) Read from the
*binary version*: records of a label byte and 3,072 bytes of pixels, red, green, blue. The python
version is a pickle, which could run anything, and is not read.
"""

from pathlib import Path

import numpy as np

from parity_models.errors import DataError
from parity_models_lab.tasks.folder import FolderTask, normalised
from parity_models_lab.tasks.task import Dataset, Split, hold_out

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST, NAMES = "test_batch.bin", "batches.meta.txt"

VALIDATION = 10
"""One in VALIDATION training images is held out: 5,000 of 50,000."""


class Cifar10(FolderTask):
    """CIFAR-10 (Krizhevsky, 2009), top-1 accuracy."""

    name = "cifar-10"
    metric = "top-1"
    flips = True
    mark = TEST
    places = ("cifar-10-batches-bin", "cifar-10", "")
    needs = (
        "the folder cifar-10-batches-bin of the binary version there (data_batch_1.bin to 5, "
        "test_batch.bin, batches.meta.txt, from https://www.cs.toronto.edu/~kriz/cifar.html); the "
        "python version is not read"
    )

    def read(self, folder: Path) -> Dataset:
        classes = tuple((folder / NAMES).read_text("utf-8", "replace").split())
        records = np.concatenate([_records(folder / name, len(classes)) for name in TRAIN])
        train, validation = hold_out(_split(records), len(records) // VALIDATION)
        test = _split(_records(folder / TEST, len(classes)))
        return Dataset(train, validation, test, classes)


def _records(path: Path, classes: int) -> np.ndarray:
    size = path.stat().st_size
    if size % RECORD or not size:
        raise DataError(f"{path} does not hold records of {RECORD} bytes; fetch it again")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD)
    if (largest := records[:, 0].max()) >= classes:
        raise DataError(
            f"{path} has a label {largest}, but {NAMES} names {classes} classes; fetch both again"
        )
    return records


def _split(records: np.ndarray) -> Split:
    mean, deviation = (np.reshape(values, (3, 1, 1)) for values in (MEAN, DEVIATION))
    pixels = records[:, 1:].reshape(-1, *SHAPE)
    return Split(normalised(pixels, mean, deviation), records[:, 0].astype(np.int64))
