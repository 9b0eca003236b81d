"""The one training loop: minimise a problem's losses within a budget, keep the best epoch."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.training.checkpoint import Checkpoint, Options, load_checkpoint, save_checkpoint
from parity_models.training.schedule import Budget, Schedule

REPORT_EVERY = 0.2
"""Seconds between reports of progress within an epoch."""


@dataclass(frozen=True)
class Progress:
    """Where a training run is: `spent` is the share of its budget, times are in seconds.

    `score` is that of the last epoch, `best` of the best so far; None before the first. The
    time left is None before the first step.
    """

    spent: float
    epoch: int
    seconds: float
    seconds_left: float | None
    score: float | None
    best: float | None


Report = Callable[[Progress], None]


class Problem(Protocol):
    """What is to be learned: a module, losses to minimise, a score to choose epochs by."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def steps(self) -> int:
        """Losses in one epoch."""

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch's losses, each computed from the module as it then is."""

    def score(self) -> float:
        """How good the module is, from 0 to 1, on queries it is not trained on."""


@dataclass(frozen=True)
class Fitted:
    """How a training run ended, with the module at its best epoch.

    `epochs` and `seconds` include those of the runs that were resumed. One that was `interrupted`
    is `resumable` if there is a checkpoint to go on from, so after its first epoch.
    """

    score: float
    best_epoch: int
    epochs: int
    seconds: float
    interrupted: bool
    resumable: bool


def fit(
    problem: Problem,
    schedule: Schedule,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path,
    options: Options,
    resume: bool,
    report: Report | None,
    began: float,
) -> Fitted:
    """Train the problem's module until the budget is spent and leave it at its best epoch.

    After every epoch `checkpoint` holds all that is needed to go on. With `resume` the run goes
    on from there; TrainingError if it is not there or its run had other `options`. Time counts
    from `began` (of time.monotonic), so that preparations are within the budget. Ctrl-C ends
    training early. An epoch's randomness depends on `seed` and its number alone, so that a
    resumed run does what an uninterrupted one would have done.
    """
    module = problem.module
    optimizer = schedule.optimizer(module.parameters())
    state = Checkpoint()
    if resume:
        state = load_checkpoint(checkpoint, module, optimizer, options)
        began -= state.seconds
    score = state.best_score
    interrupted = resumable = False
    told = 0.0

    def seconds() -> float:
        return time.monotonic() - began

    def tell(epoch: int, spent: float) -> None:
        nonlocal told
        if report is not None:
            told = now = seconds()
            left = now / spent - now if spent else None
            report(Progress(spent, epoch, now, left, score, state.best_score))

    try:
        spent = budget.spent(state.epochs, seconds())
        tell(state.epochs + 1, spent)
        while spent < 1 or state.best is None:
            module.train()
            generator = torch.Generator().manual_seed((seed << 20) + state.epochs)
            for step, loss in enumerate(problem.losses(generator), 1):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.at(spent)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                spent = budget.spent(state.epochs + step / problem.steps, seconds())
                if spent == 1:
                    break
                if step < problem.steps and seconds() - told > REPORT_EVERY:
                    tell(state.epochs + 1, spent)
            score = _score(problem)
            state = state.after_epoch(module, score, seconds())
            save_checkpoint(checkpoint, state, module, optimizer, options)
            spent = budget.spent(state.epochs, seconds())
            tell(state.epochs, spent)
    except KeyboardInterrupt:
        interrupted = True
        resumable = state.best is not None
        if state.best is None:
            state = state.after_epoch(module, _score(problem), seconds())
    assert state.best is not None
    assert state.best_score is not None
    if math.isnan(state.best_score):
        raise TrainingError(
            "the training diverged: no epoch ended with finite weights and predictions; check that "
            "the network starts with such, and how the inputs are scaled"
        )
    module.load_state_dict(state.best)
    module.eval()
    return Fitted(
        state.best_score, state.best_epoch, state.epochs, seconds(), interrupted, resumable
    )


def _score(problem: Problem) -> float:
    """The problem's score; NaN if its module has diverged."""
    sound = all(bool(weights.isfinite().all()) for weights in problem.module.state_dict().values())
    return problem.score() if sound else math.nan
