"""Judging a module takes time, too, and is within what a training may take."""

from collections.abc import Iterator
from pathlib import Path
from time import sleep

import torch
from torch import Tensor, nn

from parity_models.training.fit import Fitted, fit
from parity_models.training.recipes import Budget, recipe_for

JUDGING = 0.3


class Slow:
    """Learns in no time, and takes long to be judged: its scores are these, one after the other."""

    steps = 3

    def __init__(self, scores: Iterator[float]) -> None:
        self.module = nn.Linear(1, 1)
        self.judged = 0
        self._scores = scores

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield self.module(torch.ones(1, 1)).square().sum()

    def score(self) -> float:
        self.judged += 1
        sleep(JUDGING)
        return next(self._scores)


def fitted(problem: Slow, budget: Budget, folder: Path, known: float | None = None) -> Fitted:
    return fit(
        problem,
        recipe_for(None, "deployed", (1,)),
        budget,
        seed=0,
        checkpoint=folder / "checkpoint",
        options={},
        known=known,
    )


def test_no_epoch_begins_that_could_not_be_judged_in_time(tmp_path: Path) -> None:
    problem = Slow(iter([0.1, 0.2, 0.3, 0.4, 0.5]))
    fitted(problem, Budget(seconds=3.5 * JUDGING), tmp_path)
    assert 1 <= problem.judged <= 3


def test_what_was_trained_before_is_not_judged_again_and_not_made_worse(tmp_path: Path) -> None:
    problem = Slow(iter([0.5]))
    before = problem.module.weight.item()
    found = fitted(problem, Budget(epochs=1), tmp_path, known=0.8)
    assert (found.score, found.best_epoch, found.epochs, problem.judged) == (0.8, 0, 1, 1)
    assert problem.module.weight.item() == before
    better = fitted(Slow(iter([0.9])), Budget(epochs=1), tmp_path, known=0.8)
    assert (better.score, better.best_epoch) == (0.9, 1)
