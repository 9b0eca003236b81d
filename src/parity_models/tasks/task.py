"""Inference tasks: the source of data, and the metric that judges predictions."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from parity_models import options
from parity_models.errors import DataError, UserError
from parity_models.registry import say
from parity_models.tasks.labels import check_floats
from parity_models.tasks.metrics import METRICS, check_labels

Result = TypeVar("Result")

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every run, whatever its seed."""

Labels = NDArray[np.int64] | NDArray[np.float32]
"""Classes (n,), or what a model should put out, float32 (n, *output_shape)."""

VALIDATES = 5
"""One query in VALIDATES of a validation set helps to choose the best epoch."""


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

    def part(self, least: int) -> tuple["Split", NDArray[np.float32]]:
        """Part a validation set: one in VALIDATES, `least` at least, to choose the best epoch by,
        and the inputs of the others, to calibrate gates with. No query does both."""
        order = np.random.default_rng(0).permutation(len(self))
        number = max(least, len(order) // VALIDATES)
        return self.take(np.sort(order[:number])), self.inputs[np.sort(order[number:])]


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on.

    `classes` are the names of the classes that labels number, if they do.
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

    A subclass defines its `name`, its `Options`, its description `about`, and `load`. `metric` is
    a key of `metrics.METRICS`: it says what predictions are (classes, boxes or values) and thereby
    how models learn them. `flips`: training may mirror queries left to right (along the last axis).
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

    `places` are the folders below a folder of datasets where the files may be; `installed` are
    folders of datasets besides the user's. `needs` is for people: the files, and their source.
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


class OwnTask(Task):
    """A user's task, under the `name` that they typed (package.module:Class).

    Its errors become one sentence, and what it loads is checked.
    """

    def __init__(self, name: str, task: Task) -> None:
        super().__init__()
        self.name = name
        self.about = task.about
        self.metric = task.metric
        self.flips = task.flips
        self._task = task

    def load(self, folder: Path | None = None) -> Dataset:
        dataset = self._ask(self._task.load, folder)
        try:
            if not isinstance(dataset, Dataset):
                raise DataError(f"it gives {type(dataset).__name__}, not a Dataset")
            check_dataset(self.metric, dataset)
        except DataError as error:
            raise DataError(f"the data of {self.name} cannot be used: {error}") from error
        return dataset

    def find(self, folder: Path | None = None) -> str | None:
        return self._ask(self._task.find, folder)

    def _ask(self, method: Callable[[Path | None], Result], folder: Path | None) -> Result:
        try:
            return method(folder)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the user's class may raise anything
            raise DataError(f"{self.name}.{method.__name__} failed: {say(error)}") from error


def check_dataset(metric: str, dataset: Dataset) -> None:
    """Raise DataError unless models can be trained on `dataset` and judged by `metric`."""
    classes = METRICS[metric].kind == "classes"
    if classes and not dataset.classes:
        raise DataError(f"{metric} is of classes, and the Dataset names none (classes=...)")
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        inputs, labels = split.inputs, split.labels
        for what, array, kinds in (("inputs", inputs, "f"), ("labels", labels, "iuf")):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
                found = getattr(array, "dtype", type(array).__name__)
                raise DataError(f"{name} {what} are no array of numbers but {found}")
        check_floats(inputs, dataset.input_shape, f"{name} inputs")
        outputs = np.broadcast_to(np.float32(0), (len(inputs), *dataset.output_shape))
        check_labels(metric, outputs, labels)
        if classes and not 0 <= labels.min() <= labels.max() < len(dataset.classes):
            raise DataError(
                f"{name} labels are {labels.min()} to {labels.max()}; there are "
                f"{len(dataset.classes)} classes, from 0 on"
            )
        if not np.isfinite(labels).all():
            raise DataError(f"{name} labels hold NaN or infinite values")


def own_folder() -> Path:
    """Return the user's folder of datasets: $PARM_DATA, else the cache."""
    chosen = os.environ.get("PARM_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"


def hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))


def normalised(pixels: NDArray[np.uint8], mean: Any, deviation: Any) -> NDArray[np.float32]:
    """Return pixels of 0 to 255 (any shape) as 0 to 1, less `mean` and over `deviation`.

    The two are numbers, or arrays that broadcast over them.
    """
    scale, offset = np.float32(1 / (255 * np.float64(deviation))), np.float64(mean) / deviation
    inputs = pixels.astype(np.float32)
    inputs *= scale
    inputs -= np.float32(offset)
    return inputs
