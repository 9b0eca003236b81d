"""Inference tasks: the source of data, and the metric that judges predictions."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models import options
from parity_models.errors import DataError

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every training run, whatever its seed."""

Labels = NDArray[np.int64] | NDArray[np.float32]
"""Classes (n,), or what a model should put out, float32 (n, *output_shape)."""

VALIDATES = 5
"""One of so many queries of a validation set chooses the best epoch."""


@dataclass(frozen=True)
class Split:
    """Queries and what the right answers to them are, in the same order.

    `inputs` is float32 (n, *input_shape), normalised as models get it.
    """

    inputs: NDArray[np.float32]
    labels: Labels

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """The queries at `rows`, in that order."""
        return Split(self.inputs[rows], self.labels[rows])

    def part(self, least: int) -> tuple["Split", NDArray[np.float32]]:
        """Of a validation set, one in VALIDATES, `least` at least, to choose the best epoch by, and
        the inputs of the others, to calibrate gates with: no query does both."""
        order = np.random.default_rng(0).permutation(len(self))
        number = max(least, len(order) // VALIDATES)
        return self.take(np.sort(order[:number])), self.inputs[np.sort(order[number:])]


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on.

    `classes` names the classes that labels count through; tasks without classes have none.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one query."""
        return self.train.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one prediction: an entry for each class, or that of a label."""
        return (len(self.classes),) if self.classes else self.train.labels.shape[1:]


class Task(ABC):
    """An inference task.

    A subclass says its `name`, its `Options`, what it is `about`, and defines `load`. `metric` is
    a key of `metrics.METRICS`: it says what predictions are (classes, boxes or values) and thereby
    how models learn them. `flips` says that a query mirrored left to right
    (along its last axis) is as good a query, so training may mirror it.
    """

    name: str
    about: str = ""
    metric: str
    flips: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options or self.Options()

    @abstractmethod
    def load(self, folder: Path | None = None) -> Dataset:
        """Return the data, from the `folder` that the user named or where it usually is.

        Raises DataError where there is none or it is unsound.
        """

    def find(self, folder: Path | None = None) -> str | None:
        """Return the place where `load` would find the data, in words; None if there is none."""
        return None


class FolderTask(Task):
    """A task whose data are files in a standard layout.

    `places` are the folders below a folder of datasets where the files may lie; `installed` are
    folders of datasets besides the user's. `needs` says what files are looked for and where
    they come from.
    """

    places: ClassVar[tuple[str, ...]]
    needs: ClassVar[str]
    installed: ClassVar[tuple[Path, ...]] = ()

    @abstractmethod
    def holds(self, folder: Path) -> bool:
        """Return whether the files are in `folder`."""

    @abstractmethod
    def read(self, folder: Path) -> Dataset:
        """Return the data in `folder`, which holds the files. Raises DataError for damaged ones."""

    def load(self, folder: Path | None = None) -> Dataset:
        found = self._search(folder)
        if found is None:
            looked = folder or own_folder()
            raise DataError(
                f"the data of {self.name} are not in {looked}: put {self.needs}; name the folder "
                "with --data-dir or $PARM_DATA"
            )
        return self.read(found)

    def find(self, folder: Path | None = None) -> str | None:
        found = self._search(folder)
        return None if found is None else str(found)

    def _search(self, folder: Path | None) -> Path | None:
        roots = (folder,) if folder else (own_folder(), *self.installed)
        for root in roots:
            for place in self.places:
                if self.holds(root / place):
                    return root / place
        return None


def own_folder() -> Path:
    """The user's folder of datasets: $PARM_DATA, else the cache."""
    chosen = os.environ.get("PARM_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"


def hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))


def normalised(pixels: NDArray[np.uint8], mean: Any, deviation: Any) -> NDArray[np.float32]:
    """Pixels from 0 to 255, taken as 0 to 1, less `mean` and over `deviation`.

    `pixels` may have any shape, which the result has as well. The two are numbers, or arrays that
    broadcast over them.
    """
    scale, offset = np.float32(1 / (255 * np.float64(deviation))), np.float64(mean) / deviation
    inputs = pixels.astype(np.float32)
    inputs *= scale
    inputs -= np.float32(offset)
    return inputs
