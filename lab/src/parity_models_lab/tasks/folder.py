"""Tasks whose data are files in a standard layout, in a folder of datasets."""

import os
from abc import abstractmethod
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models_lab.tasks.task import Dataset, Task


class FolderTask(Task):
    """A task whose data are files in a standard layout.

    `places` are the folders below a folder of datasets where the files may be: they are where
    something matches the glob pattern `mark`. `installed` are folders of datasets besides the
    user's. `needs` is for people: the files, and their source.
    """

    places: ClassVar[tuple[str, ...]]
    mark: ClassVar[str]
    needs: ClassVar[str]
    installed: ClassVar[tuple[Path, ...]] = ()

    @abstractmethod
    def read(self, folder: Path) -> Dataset:
        """Return the data in `folder`, where the mark is. Raises DataError for damaged ones."""

    def load(self, folder: Path | None = None) -> Dataset:
        roots = (folder,) if folder else (own_folder(), *self.installed)
        for root, place in product(roots, self.places):
            if next((root / place).glob(self.mark), None) is not None:
                return self.read(root / place)
        raise DataError(
            f"the data of {self.name} are not in {roots[0]}: put {self.needs}; name the folder by "
            "the variable PARM_DATA"
        )


def own_folder() -> Path:
    """Return the user's folder of datasets: $PARM_DATA, else the cache."""
    chosen = os.environ.get("PARM_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"


def normalised(pixels: NDArray[np.uint8], mean: Any, deviation: Any) -> NDArray[np.float32]:
    """Return pixels of 0 to 255 (any shape) as 0 to 1, less `mean` and over `deviation`.

    The two are numbers, or arrays that broadcast over them.
    """
    scale, offset = np.float32(1 / (255 * np.float64(deviation))), np.float64(mean) / deviation
    inputs = pixels.astype(np.float32)
    inputs *= scale
    inputs -= np.float32(offset)
    return inputs
