"""The training loop: minimise a problem's losses within a budget, keep the best epoch, resume.

After every epoch a checkpoint, one safetensors file, holds all that is needed to continue: tensors
of the module, the optimiser and the best epoch, and JSON in the file's header. Nothing is
unpickled.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from parity_models.errors import TrainingError, spell
from parity_models.progress import OnProgress, Progress
from parity_models.registry import is_own
from parity_models.training.networks import Effort

Weights = dict[str, Tensor]

RunOptions = dict[str, str | int | float | bool]
"""All that determines a run's result, except chance, by name."""

REPORT_EVERY = 0.2
"""Seconds between reports of progress within an epoch."""


@dataclass(frozen=True)
class Budget:
    """The end of training: after `epochs` or `seconds`, whichever comes first; with neither, after
    the recipe's number of epochs."""

    epochs: int | None = None
    seconds: float | None = None

    def spent(self, epochs: float, seconds: float) -> float:
        """Return the share of the budget that is used up, from 0 to 1."""
        by_epochs = epochs / self.epochs if self.epochs is not None else 0.0
        by_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_epochs, by_seconds))


class Problem(Protocol):
    """A module, the losses to minimise in an epoch of some `steps`, and the score to choose by."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def steps(self) -> int: ...

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield one epoch's losses, each computed from the module in its present state."""

    def score(self) -> float:
        """Return how good the module is, from 0 to 1, on queries it is not trained on."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training run; its module is at its best epoch.

    `epochs` and `seconds` include those of resumed runs; `best_epoch` 0 is the module
    as it began. An `interrupted` run is `resumable` if it has a checkpoint, that is, after its
    first epoch. A run that `diverged` ended with that epoch.
    """

    score: float
    best_epoch: int
    epochs: int
    seconds: float
    interrupted: bool = False
    resumable: bool = False
    diverged: bool = False


@dataclass
class Run:
    """A training run of a problem's module, and the state that its checkpoint holds.

    An epoch's randomness depends only on `seed` and its number, so that a resumed run gives the
    same result as an uninterrupted one. Ctrl-C ends training early.

    Args:
        problem: The module and its losses.
        recipe: The optimiser and its learning rate.
        budget: When training ends. It includes judging the module, if that time is known.
        seed: Fixes the order of the data.
        checkpoint: The file, if any, that holds all that is needed to continue after every epoch.
        options: All that determines the run's result, except chance.
        on_progress: Called several times a second.
        began: The time.monotonic() from which the budget counts; by default now.
    """

    problem: Problem
    recipe: Effort
    budget: Budget
    seed: int
    checkpoint: Path | None
    options: RunOptions
    on_progress: OnProgress | None = None
    began: float = field(default_factory=lambda: time.monotonic())
    epochs: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    best: Weights = field(default_factory=dict)
    score: float | None = None
    diverged: bool = False  # the last epoch ended with weights that are not finite
    spent: float = 0.0
    reported: float = 0.0
    judging: float = 0.0  # seconds that the last judgement took

    def __post_init__(self) -> None:
        self.module = self.problem.module
        if self.budget == Budget():
            self.budget = Budget(self.recipe.usual_epochs(self.problem.steps))
        self.optimizer = self.recipe.optimizer(self.module.parameters())

    def fit(self, *, resume: bool = False, known: float | None = None) -> Fitted:
        """Train the module until the budget is spent, and leave it at its best epoch.

        With `resume` it continues from the checkpoint. `known` is the score of a module that was
        trained before: training does not make it worse. Raises TrainingError if the first epoch
        diverges, if the checkpoint cannot be written, and if there is none to resume from, or its
        run had other options.
        """
        if resume:
            self._load()
        interrupted = resumable = False
        self.spent = self._used(self.epochs)
        try:
            with _interrupts_held() as interrupt_if_asked:
                if self.best_score is None and known is not None:
                    self._keep_best(known)
                self._report(self.epochs + 1)
                while self.best_score is None or (self.spent < 1 and not self.diverged):
                    self._train_epoch(interrupt_if_asked)
                    self._save()
                    self._report(self.epochs)
        except KeyboardInterrupt:
            interrupted, resumable = True, self.epochs > 0
            if not resumable:
                self._end_epoch()
        if self.best_score is None or math.isnan(self.best_score):
            raise TrainingError(
                "the training diverged: no epoch ended with finite weights and predictions; check "
                "that those of the new network are finite, and how the inputs are scaled"
            )
        self.module.load_state_dict(self.best)
        self.module.eval()
        ended = (self.best_score, self.best_epoch, self.epochs, self._seconds)
        return Fitted(*ended, interrupted, resumable, self.diverged)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _used(self, epochs: float) -> float:
        """Return the share of the budget that is spent if the module is judged once more."""
        return self.budget.spent(epochs, self._seconds + self.judging)

    def _train_epoch(self, after_step: Callable[[], None]) -> None:
        self.module.train()
        epochs, steps = self.epochs, self.problem.steps
        generator = torch.Generator().manual_seed((self.seed << 20) + epochs)
        for step, loss in enumerate(self.problem.losses(generator), 1):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate_at(self.spent)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            after_step()
            self.spent = self._used(epochs + step / steps)
            if self.spent == 1:
                break
            if step < steps and self._seconds - self.reported > REPORT_EVERY:
                self._report(epochs + 1)
        self._end_epoch()

    def _end_epoch(self) -> None:
        weights = self.module.state_dict().values()
        self.diverged = not all(bool(each.isfinite().all()) for each in weights)
        self.epochs += 1
        self.score = math.nan
        if not self.diverged:
            began = time.monotonic()
            self.score = self.problem.score()
            self.judging = time.monotonic() - began
        best = self.best_score
        if best is None or math.isnan(best) or self.score >= best:
            self._keep_best(self.score)
        self.spent = self._used(self.epochs)

    def _keep_best(self, score: float) -> None:
        self.score = self.best_score = score
        self.best_epoch = self.epochs
        self.best = {name: each.detach().clone() for name, each in self.module.state_dict().items()}

    def _report(self, epoch: int) -> None:
        if self.on_progress is None:
            return
        self.reported = now = self._seconds
        left = now / self.spent - now if self.spent else None
        scores = self.score, self.best_score
        self.on_progress(Progress("training", self.spent, 1.0, f"epoch {epoch}", left, *scores))

    # The checkpoint

    def _save(self) -> None:
        """Write the checkpoint, if any, replacing the previous one in one step."""
        path = self.checkpoint
        if path is None:
            return
        parts = {"module": self.module.state_dict(), "best": self.best}
        state = self.optimizer.state_dict()["state"]
        parts |= {f"optimizer/{index}": values for index, values in state.items()}
        tensors = {f"{part}/{name}": each for part in parts for name, each in parts[part].items()}
        run = {
            "epochs": self.epochs,
            "seconds": self._seconds,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "options": self.options,
        }
        new = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not by save_file, which leaves a file of a random name if it is killed.
            content = {name: value.contiguous() for name, value in tensors.items()}
            new.write_bytes(save(content, {"run": json.dumps(run)}))
            os.replace(new, path)
        except OSError as error:
            raise TrainingError(f"cannot write the checkpoint {path}: {error}") from error
        finally:
            new.unlink(missing_ok=True)

    def _load(self) -> None:
        """Continue from the checkpoint.

        Raises TrainingError if it is missing or damaged, or its run had other options.
        """
        path = self.checkpoint
        if path is None or not path.is_file():
            raise TrainingError(
                f"there is nothing to resume at {path}; run without {spell('resume')}"
            )
        parts: dict[str, Weights] = {"module": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as file:
                run: dict[str, Any] = json.loads(file.metadata()["run"])
                for key in file.keys():  # noqa: SIM118  # it has keys, but cannot be iterated
                    part, name = key.split("/", 1)
                    parts[part][name] = file.get_tensor(key)
            changed = [
                f"{name} {was}, now {self.options.get(name)}"
                for name, was in run["options"].items()
                if was != self.options.get(name)
            ]
            if not changed:
                self.module.load_state_dict(parts["module"])
                self._restore_optimizer(parts["optimizer"])
                self.epochs, self.best_epoch = run["epochs"], run["best_epoch"]
                self.score = self.best_score = run["best_score"]
                self.best = parts["best"]
                self.began -= run["seconds"]
        except (
            SafetensorError,
            OSError,
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            raise TrainingError(
                f"the checkpoint {path} is damaged ({error}); run without {spell('resume')}"
            ) from error
        if changed:
            raise TrainingError(
                f"the run at {path} had other options ({'; '.join(changed)}); resume with the same "
                f"options or run without {spell('resume')}"
            )

    def _restore_optimizer(self, values: Weights) -> None:
        state = self.optimizer.state_dict()
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for key, value in values.items():
            index, name = key.split("/")
            like = weights[int(index)]
            # The fused optimiser walks through memory: moments must be laid out as their weights.
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)


def network_in(checkpoint: Path) -> str | None:
    """Return the network of the run that a checkpoint holds.

    None if it cannot be read, and for the user's own, which is not imported because a file says so.
    """
    try:
        with safe_open(checkpoint, "pt") as file:
            network = str(json.loads(file.metadata()["run"])["options"]["network"])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError):
        return None
    return None if is_own(network) else network


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed since.

    Raised within a step, it could leave torch's state half changed, with autocast still on for
    example. A second Ctrl-C does not wait. Other threads are not interrupted, and a program that
    handles SIGINT itself goes on doing so.
    """
    asked = False

    def hold(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def interrupt_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before is not signal.default_int_handler:
        yield interrupt_if_asked
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupt_if_asked
        interrupt_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)
