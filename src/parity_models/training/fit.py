"""The one training loop: minimise a problem's losses within a budget, keep the best epoch."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.network import NamedModule
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

    `epochs` and `seconds` include those of the runs that were resumed; `best_epoch` 0 is how the
    module began. One that was `interrupted`
    is `resumable` if there is a checkpoint to go on from, so after its first epoch. One that
    `diverged`, in its last epoch, ended there.
    """

    score: float
    best_epoch: int
    epochs: int
    seconds: float
    interrupted: bool
    resumable: bool
    diverged: bool = False


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
    known: float | None = None,
) -> Fitted:
    """Train the problem's module until the budget is spent and leave it at its best epoch.

    After every epoch `checkpoint` holds all that is needed to go on. With `resume` the run goes
    on from there; TrainingError if it is not there or its run had other `options`. Time counts
    from `began` (of time.monotonic), so that preparations are within the budget; so is judging the
    module, as far as it is known how long that takes. `known` is the score of a module that was
    trained before: training does not make it worse. Ctrl-C ends training early. An epoch's
    randomness depends on `seed` and its number alone, so that a resumed run does what an
    uninterrupted one would have done.
    """
    optimizer = schedule.optimizer(problem.module.parameters())
    state = Checkpoint()
    if resume:
        state = load_checkpoint(checkpoint, problem.module, optimizer, options)
        began -= state.seconds
    loop = _Loop(problem, schedule, budget, seed, optimizer, state, report, began)
    interrupted = resumable = False
    try:
        if state.best is None and (known is not None or _has_learned(problem.module)):
            loop.begin(known)
        loop.tell(state.epochs + 1)
        while not loop.over:
            loop.epoch()
            save_checkpoint(checkpoint, loop.state, problem.module, optimizer, options)
            loop.tell()
    except KeyboardInterrupt:
        interrupted = True
        resumable = loop.state.epochs > 0
        if not resumable:
            loop.judge()
    fitted = _at_best(problem.module, loop.state, loop.seconds, interrupted, resumable)
    return replace(fitted, diverged=loop.diverged)


class _Loop:
    """Epoch after epoch, and where it is."""

    def __init__(
        self,
        problem: Problem,
        schedule: Schedule,
        budget: Budget,
        seed: int,
        optimizer: torch.optim.Optimizer,
        state: Checkpoint,
        report: Report | None,
        began: float,
    ) -> None:
        self.state = state
        self._problem = problem
        self._schedule = schedule
        self._budget = budget
        self._seed = seed
        self._optimizer = optimizer
        self._report = report
        self._began = began
        self._score = state.best_score
        self._told = 0.0
        self._judging = 0.0  # seconds that it took the last time
        self.diverged = False
        """Did the last epoch end with weights that are not finite? No further one mends them."""
        self._spent = self._used(state.epochs)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        return self.state.best is not None and (self._spent >= 1 or self.diverged)

    def begin(self, known: float | None) -> None:
        """Take the module as it is for the best so far: training may make it worse."""
        score = self._judged() if known is None else known
        state = self.state.after_epoch(self._problem.module, score, self.seconds)
        self.state = replace(state, epochs=0, best_epoch=0)
        self._score = self.state.best_score
        self._spent = self._used(0)

    def epoch(self) -> None:
        """Train for one, or until the budget is spent, and judge what came of it."""
        self._problem.module.train()
        epochs, steps = self.state.epochs, self._problem.steps
        generator = torch.Generator().manual_seed((self._seed << 20) + epochs)
        for step, loss in enumerate(self._problem.losses(generator), 1):
            for group in self._optimizer.param_groups:
                group["lr"] = self._schedule.at(self._spent)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._spent = self._used(epochs + step / steps)
            if self._spent == 1:
                break
            if step < steps and self.seconds - self._told > REPORT_EVERY:
                self.tell(epochs + 1)
        self.judge()

    def judge(self) -> None:
        """An epoch is over."""
        self.diverged = not _is_sound(self._problem.module)
        self._score = math.nan if self.diverged else self._judged()
        self.state = self.state.after_epoch(self._problem.module, self._score, self.seconds)
        self._spent = self._used(self.state.epochs)

    def _judged(self) -> float:
        began = time.monotonic()
        score = self._problem.score()
        self._judging = time.monotonic() - began
        return score

    def _used(self, epochs: float) -> float:
        """How much of the budget is spent, if the module has to be judged once more."""
        return self._budget.spent(epochs, self.seconds + self._judging)

    def tell(self, epoch: int | None = None) -> None:
        """Report where the run is: in `epoch`, or at the end of the last one."""
        if self._report is None:
            return
        self._told = now = self.seconds
        left = now / self._spent - now if self._spent else None
        number, best = epoch or self.state.epochs, self.state.best_score
        self._report(Progress(self._spent, number, now, left, self._score, best))


def _at_best(
    module: nn.Module, state: Checkpoint, seconds: float, interrupted: bool, resumable: bool
) -> Fitted:
    """Leave `module` at its best epoch. Raises TrainingError if it diverged."""
    assert state.best is not None
    assert state.best_score is not None
    if math.isnan(state.best_score):
        raise TrainingError(
            "the training diverged: no epoch ended with finite weights and predictions; check that "
            "the network starts with such, and how the inputs are scaled"
        )
    module.load_state_dict(state.best)
    module.eval()
    return Fitted(state.best_score, state.best_epoch, state.epochs, seconds, interrupted, resumable)


def _has_learned(module: nn.Module) -> bool:
    """Does the module predict well before it is trained?"""
    return isinstance(module, NamedModule) and module.learned


def _is_sound(module: nn.Module) -> bool:
    """Are all weights finite?"""
    return all(bool(weights.isfinite().all()) for weights in module.state_dict().values())
