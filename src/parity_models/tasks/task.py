"""What an inference task is: where its data comes from and how its predictions are judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every training run, whatever its seed."""


@dataclass(frozen=True)
class Split:
    """Queries and what the right answers to them are, in the same order.

    `inputs` is float32 (n, *input_shape), normalised as models get it; `labels` int64 (n,).
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """The queries at `rows`, in that order."""
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """An inference task.

    Shapes are without the batch axis. `metric` is a key of `metrics.METRICS`. `flips` says
    that a query mirrored left to right is as good a query, so training may mirror it. `load`
    takes the folder the user named (or None) and raises DataError where it finds no sound data.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    metric: str
    flips: bool
    load: Callable[[Path | None], Dataset]


def hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))
