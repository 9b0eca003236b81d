"""Cats vs dogs: 25,000 photographs (Asirra; J. Elson et al., CCS 2007).

Read from folders of images, one for each kind (`cat` and `dog`, also in plural and capitals), or
from one folder of files that begin with the kind ("cat.0.jpg"), as the competition had them.
"""

from pathlib import Path

import numpy as np

from parity_models.errors import DataError
from parity_models.tasks.task import Dataset, Split, hold_out, normalised
from parity_models_lab.tasks.images import ImageTask, image_files, read_images

KINDS = ("cat", "dog")
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""Of the channels of photographs, as is customary since ImageNet."""

BROKEN = ("Cat/666.jpg", "Dog/11702.jpg")
"""Files of Microsoft's archive that are no images; they are left out."""

TEST, VALIDATION = 5, 10
"""One of so many images is for test, and of the rest one of so many for validation."""


class CatsVsDogs(ImageTask):
    """Photographs, squeezed into squares."""

    name = "cats-vs-dogs"
    about = "photographs of cats and dogs, 64x64"
    metric = "top-1"
    flips = True
    places = (
        "cats-vs-dogs",
        "dogs-vs-cats/train",
        "dogs-vs-cats",
        "cats-vs-dogs/PetImages",
        "cats-vs-dogs/train",
        "PetImages",
        "train",
        "",
    )
    needs = (
        "a folder cats-vs-dogs there with folders cat and dog of images (or PetImages as "
        "Microsoft, or train as Kaggle distributes them)"
    )

    def holds(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        return all(_folder_of(folder, kind) for kind in KINDS) or all(
            next(folder.glob(f"{kind}.*"), None) for kind in KINDS
        )

    def read(self, folder: Path) -> Dataset:
        paths, labels = [], []
        for label, kind in enumerate(KINDS):
            found = _images_of(folder, kind)
            if not found:
                raise DataError(f"there is no image of a {kind} in {folder}")
            paths += found
            labels += [label] * len(found)
        pixels, _ = read_images(paths, self.options.side)
        inputs = normalised(pixels, MEAN.reshape(3, 1, 1), DEVIATION.reshape(3, 1, 1))
        rest, test = hold_out(Split(inputs, np.array(labels)), max(1, len(paths) // TEST))
        train, validation = hold_out(rest, max(1, len(rest) // VALIDATION))
        return Dataset(train, validation, test, KINDS)


def _images_of(folder: Path, kind: str) -> list[Path]:
    own = _folder_of(folder, kind)
    if own is not None:
        return [file for file in image_files(own) if f"{own.name}/{file.name}" not in BROKEN]
    return [file for file in image_files(folder) if file.name.startswith(f"{kind}.")]


def _folder_of(folder: Path, kind: str) -> Path | None:
    names = (kind, f"{kind}s", kind.capitalize(), f"{kind.capitalize()}s")
    return next((folder / name for name in names if (folder / name).is_dir()), None)
