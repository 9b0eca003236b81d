"""Datasets in files as MNIST has them, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np

from parity_models_lab.tasks import TEST, TRAIN

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 28, 28), np.uint8)


def labels_of(images: np.ndarray) -> np.ndarray:
    """Classes from 0 to 9 in turns, one for each image."""
    return (np.arange(len(images)) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """What a file holds of an array of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_dataset(folder: Path, *, zipped: bool, images: np.ndarray = IMAGES) -> Path:
    """Write the images, to train on and to test with alike, and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_file, label_file in (TRAIN, TEST):
        for name, array in ((image_file, images), (label_file, labels_of(images))):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder
