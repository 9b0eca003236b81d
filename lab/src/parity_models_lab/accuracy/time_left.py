"""How long the rest of a matrix takes, learnt from what has been run of it."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from parity_models_lab.accuracy.matrix import Budget, DeployedCell, FreeCell

Cell = Budget | FreeCell
"""A deployed model, a code with parity models, a backup, or a code without parity models."""

BESIDES = 10.0
"""Seconds that a cell takes beside its training's budget, as long as none of its kind was run."""

USUAL = 90.0
"""Seconds more, where a training has no budget in seconds."""


class TimeLeft:
    """The cells of a matrix in the order in which they are run, less those that are done.

    What a cell takes beside its training's budget (export, evaluation; all of it where there is
    no budget) is taken to be what those of its kind took, for the same deployed model if there
    were any.
    """

    def __init__(self, models: Sequence[DeployedCell]) -> None:
        self._left = [(model, cell) for model in models for cell in _cells(model)]
        self._took: dict[object, list[float]] = defaultdict(list)
        self._all = len(self._left)

    @property
    def place(self) -> str:
        """Which cell comes next, of how many: 3/12."""
        return f"{self._all - len(self._left) + 1}/{self._all}"

    def done(self, took: float | None = None) -> None:
        """The next cell is done, in so many seconds if it had not been run before."""
        model, cell = self._left.pop(0)
        if took is not None:
            for key in ((model, _kind(cell)), _kind(cell)):
                self._took[key].append(took - (_seconds(cell) or 0))

    def seconds(self) -> float:
        """How long all that is left takes."""
        return sum(self._expected(model, cell) for model, cell in self._left)

    def _expected(self, model: DeployedCell, cell: Cell) -> float:
        budget = _seconds(cell)
        kind = _kind(cell)
        took = self._took.get((model, kind)) or self._took.get(kind)
        if took:
            return (budget or 0) + mean(took)
        if isinstance(cell, FreeCell):
            return BESIDES
        return BESIDES + (USUAL if budget is None else budget)


def _cells(model: DeployedCell) -> tuple[Cell, ...]:
    return (model, *model.codes, *model.backups, *model.free)


def _kind(cell: Cell) -> str:
    return cell.code if isinstance(cell, FreeCell) else type(cell).__name__


def _seconds(cell: Cell) -> float | None:
    return None if isinstance(cell, FreeCell) else cell.seconds
