"""Fashion-MNIST: 70,000 images of 28x28 of ten kinds of garments.

(H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, 2017.)
"""

import os
from pathlib import Path

from parity_models.errors import DataError
from parity_models.tasks.idx import TEST, TRAIN, holds_splits, read_split
from parity_models.tasks.task import Dataset, Task, hold_out

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the files."""

LAYOUTS = ("", "fashion-mnist", "FashionMNIST/raw")
"""Where the files may be below a folder of datasets; the last is torchvision's."""

MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training pixels, whose values go from 0 to 1."""

VALIDATION = 12
"""One of so many training images is held out: 5,000 of 60,000."""

CLASSES = 10


def load(folder: Path | None = None) -> Dataset:
    """55,000 images to train on, 5,000 for validation, 10,000 for test.

    Looks in `folder` if it is given, else in $PARM_DATA, where the Debian package installs, and
    in the cache, and downloads into $PARM_DATA or the cache if the files are in none of them.
    """
    found = _find(folder) or _download()
    rest, test = (read_split(found, names, MEAN, DEVIATION) for names in (TRAIN, TEST))
    for split in (rest, test):
        if split.inputs.shape[1:] != FASHION_MNIST.input_shape or split.labels.max() >= CLASSES:
            raise DataError(
                f"{found} does not hold Fashion-MNIST: its images are {split.inputs.shape[2:]} "
                f"with labels up to {split.labels.max()}, not (28, 28) with labels up to 9"
            )
    train, validation = hold_out(rest, len(rest) // VALIDATION)
    return Dataset(train, validation, test)


def _find(folder: Path | None) -> Path | None:
    roots = [folder] if folder else [_own_folder(), INSTALLED]
    for root in roots:
        for layout in LAYOUTS:
            if holds_splits(root / layout):
                return root / layout
    if folder:
        raise DataError(
            f"the Fashion-MNIST files ({', '.join(TRAIN + TEST)}, gzipped or not) are not in "
            f"{folder}; name the folder that holds them, or leave --data-dir out to have other "
            "places searched"
        )
    return None


def _own_folder() -> Path:
    """The user's folder of datasets: $PARM_DATA, else the cache."""
    chosen = os.environ.get("PARM_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"


def _download() -> Path:
    root = _own_folder()
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(root), download=True)
    except (ImportError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"Fashion-MNIST is neither in {root} nor in {INSTALLED}, and downloading it failed "
            f"({why}). Install the Debian package dataset-fashion-mnist, or fetch the four .gz "
            "files from https://github.com/zalandoresearch/fashion-mnist and name their folder "
            "with --data-dir or $PARM_DATA"
        ) from error
    return root / "FashionMNIST" / "raw"


FASHION_MNIST = Task("fashion-mnist", (1, 28, 28), (CLASSES,), "top-1", flips=True, load=load)
