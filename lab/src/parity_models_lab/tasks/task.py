"""Inference tasks: the source of data, and the metric that judges predictions."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models import options
from parity_models.errors import DataError, UserError
from parity_models.registry import say
from parity_models.tasks.metrics import METRICS, Labels, check_floats, check_labels

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every run, whatever its seed."""


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

    A subclass defines its `name`, its `Options`, and `load`. `metric` is
    a key of `metrics.METRICS`: it says what predictions are (classes, boxes or values) and thereby
    how models learn them. `flips`: training may mirror queries left to right (along the last axis).
    """

    name: str
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
        """Return the data in `folder`, where the mark is. Raises DataError, or what reading raises,
        for damaged ones."""

    def load(self, folder: Path | None = None) -> Dataset:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parity-models"
        own = folder or Path(os.environ.get("PARM_DATA") or cache)
        for root, place in product((own, *(() if folder else self.installed)), self.places):
            if next((root / place).glob(self.mark), None) is not None:
                try:
                    return self.read(root / place)
                except (OSError, ValueError, EOFError) as error:
                    raise DataError(f"{root / place}: {error}; fetch the data again") from error
        raise DataError(
            f"the data of {self.name} are not in {own}: put {self.needs}; name the folder by the "
            "variable PARM_DATA"
        )


def load_dataset(task: Task) -> Dataset:
    """Return a task's data, checked; its class may be a user's own.

    Raises DataError for data that cannot be used, and where there are none.
    """
    try:
        dataset = task.load()
        check_dataset(task.metric, dataset)
    except DataError as error:
        raise DataError(f"the data of {task.name} cannot be used: {error}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's class may raise anything
        raise DataError(f"{task.name}.load failed: {say(error)}") from error
    return dataset


def check_dataset(metric: str, dataset: object) -> None:
    """Raise DataError unless models can be trained on `dataset` and judged by `metric`."""
    if not isinstance(dataset, Dataset):
        raise DataError(f"it is {type(dataset).__name__}, not a Dataset")
    classes = METRICS[metric].kind == "classes"
    if classes and not dataset.classes:
        raise DataError(f"{metric} is of classes, and the Dataset names none (classes=...)")
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        for array, kinds in ((split.inputs, "f"), (split.labels, "iuf")):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
                raise DataError(f"{name} inputs and labels must be arrays of numbers")
        check_floats(split.inputs, dataset.input_shape, f"{name} inputs")
        outputs = np.broadcast_to(np.float32(0), (len(split), *dataset.output_shape))
        check_labels(metric, outputs, split.labels)
        low, high = split.labels.min(), split.labels.max()
        if classes and not 0 <= low <= high < len(dataset.classes):
            raise DataError(
                f"{name} labels are {low} to {high}; there are {len(dataset.classes)} classes, "
                "from 0 on"
            )
        if not np.isfinite(split.labels).all():
            raise DataError(f"{name} labels hold NaN or infinite values")


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
