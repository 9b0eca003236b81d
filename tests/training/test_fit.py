"""A training keeps within its budget, judging included, and makes nothing worse."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from parity_models.training import fit as fitting
from parity_models.training.device import NARROW, place
from parity_models.training.fit import Budget, Fitted, Run
from parity_models.training.network_plans import recipe_for


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fitting, "time", clock)
    return clock


class Slow:
    """Learns in no time, and takes a second to be judged: its scores are these, in turn."""

    steps = 3

    def __init__(self, clock: Clock, *scores: float) -> None:
        self.module = nn.Linear(1, 1)
        self.judged = 0
        self._clock = clock
        self._scores = iter(scores)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield self.module(torch.ones(1, 1)).square().sum()

    def score(self) -> float:
        self.judged += 1
        self._clock.now += 1
        return next(self._scores)


def fitted(problem: Slow, budget: Budget, folder: Path, known: float | None = None) -> Fitted:
    recipe, checkpoint = recipe_for(None, "deployed", (1,)), folder / "checkpoint"
    run = Run(problem, recipe, budget, seed=0, checkpoint=checkpoint, options={})
    return run.fit(known=known)


def test_no_epoch_begins_that_could_not_be_judged_in_time(tmp_path: Path, clock: Clock) -> None:
    problem = Slow(clock, 0.1, 0.2, 0.3, 0.4, 0.5)
    fitted(problem, Budget(seconds=3.5), tmp_path)
    assert problem.judged == 3


def test_an_earlier_training_is_not_judged_again(tmp_path: Path, clock: Clock) -> None:
    problem = Slow(clock, 0.5)
    before = problem.module.weight.item()
    found = fitted(problem, Budget(epochs=1), tmp_path, known=0.8)
    assert (found.score, found.best_epoch, found.epochs, problem.judged) == (0.8, 0, 1, 1)
    assert problem.module.weight.item() == before
    better = fitted(Slow(clock, 0.9), Budget(epochs=1), tmp_path, known=0.8)
    assert (better.score, better.best_epoch) == (0.9, 1)


@pytest.mark.parametrize(("channels", "last"), [(NARROW - 1, False), (NARROW, True)])
def test_channels_are_last_unless_a_strided_convolution_has_few(channels: int, last: bool) -> None:
    first = nn.Conv2d(3, channels, 3)
    cpu = torch.device("cpu")
    place(nn.Sequential(first, nn.Conv2d(channels, 2 * channels, 1, stride=2)), cpu)
    assert first.weight.is_contiguous(memory_format=torch.channels_last) == last
