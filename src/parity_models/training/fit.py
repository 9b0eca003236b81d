"""The training loop: minimise a problem's losses within a budget, keep the best epoch, resume.

After every epoch a checkpoint, one safetensors file, holds all that is needed to continue: tensors
of the module, the optimiser and the best epoch, and JSON in the file's header. Nothing is
unpickled.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.network import NamedModule
from parity_models.training.recipes import Budget, Recipe, RunOptions

Weights = dict[str, Tensor]

REPORT_EVERY = 0.2
"""Seconds between reports of progress within an epoch."""


@dataclass(frozen=True)
class Progress:
    """The progress of a training run: `spent` is the share of its budget, times are in seconds.

    `score` is that of the last epoch, `best` of the best so far; None before the first. The
    time left is None before the first step.
    """

    spent: float
    epoch: int
    seconds: float
    seconds_left: float | None
    score: float | None
    best: float | None


OnProgress = Callable[[Progress], None]


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
    """How a training run ended, with the module at its best epoch.

    `epochs` and `seconds` include those of the runs that were resumed; `best_epoch` 0 is the module
    as it began. One that was `interrupted` is `resumable` if there is a checkpoint, so after its
    first epoch. One that `diverged`, in its last epoch, ended there.
    """

    score: float
    best_epoch: int
    epochs: int
    seconds: float
    interrupted: bool = False
    resumable: bool = False
    diverged: bool = False


def fit(
    problem: Problem,
    recipe: Recipe,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path,
    options: RunOptions,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    began: float | None = None,
    known: float | None = None,
) -> Fitted:
    """Train the problem's module until the budget is spent and leave it at its best epoch.

    After every epoch `checkpoint` holds all that is needed to continue. With `resume` the run
    continues from there; TrainingError if it is not there or its run had other `options`. Time
    counts from `began` (of time.monotonic, by default now), so that preparations are within the
    budget; so is judging the module, as far as it is known how long that takes. `known` is the
    score of a module that was trained before: training does not make it worse. Ctrl-C ends training
    early. An epoch's randomness depends on `seed` and its number alone, so that a resumed run does
    what an uninterrupted one would have done.
    """
    began = time.monotonic() if began is None else began
    run = _Run(problem, recipe, budget, seed, checkpoint, options, on_progress, began)
    if resume:
        run.load()
    return run.to_the_end(known)


class _Run:
    """One training run and its state, which the checkpoint holds."""

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        budget: Budget,
        seed: int,
        checkpoint: Path,
        options: RunOptions,
        on_progress: OnProgress | None,
        began: float,
    ) -> None:
        self._problem = problem
        self._module = problem.module
        self._recipe = recipe
        self._budget = budget
        self._seed = seed
        self._checkpoint = checkpoint
        self._options = options
        self._on_progress = on_progress
        self._began = began
        self._optimizer = recipe.optimizer(problem.module.parameters())
        self._epochs = 0
        self._best_epoch = 0
        self._best_score: float | None = None
        self._best: Weights = {}
        self._score: float | None = None
        self._diverged = False  # the last epoch ended with weights that are not finite
        self._spent = 0.0
        self._reported = 0.0
        self._judging = 0.0  # seconds that the last judgement took

    def to_the_end(self, known: float | None) -> Fitted:
        """Train epoch after epoch. Raises TrainingError if the first one diverges."""
        interrupted = resumable = False
        self._spent = self._used(self._epochs)
        try:
            learned = isinstance(self._module, NamedModule) and self._module.learned
            if self._best_score is None and (known is not None or learned):
                self._keep_best(self._judge() if known is None else known)
                self._spent = self._used(0)
            self._report(self._epochs + 1)
            while self._best_score is None or (self._spent < 1 and not self._diverged):
                self._train_epoch()
                self._save()
                self._report(self._epochs)
        except KeyboardInterrupt:
            interrupted, resumable = True, self._epochs > 0
            if not resumable:
                self._end_epoch()
        if self._best_score is None or math.isnan(self._best_score):
            raise TrainingError(
                "the training diverged: no epoch ended with finite weights and predictions; check "
                "that the network starts with such, and how the inputs are scaled"
            )
        self._module.load_state_dict(self._best)
        self._module.eval()
        return Fitted(
            self._best_score,
            self._best_epoch,
            self._epochs,
            self._seconds,
            interrupted,
            resumable,
            self._diverged,
        )

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _used(self, epochs: float) -> float:
        """Return the share of the budget that is spent if the module is judged once more."""
        return self._budget.spent(epochs, self._seconds + self._judging)

    def _train_epoch(self) -> None:
        self._module.train()
        epochs, steps = self._epochs, self._problem.steps
        generator = torch.Generator().manual_seed((self._seed << 20) + epochs)
        for step, loss in enumerate(self._problem.losses(generator), 1):
            for group in self._optimizer.param_groups:
                group["lr"] = self._recipe.rate_at(self._spent)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._spent = self._used(epochs + step / steps)
            if self._spent == 1:
                break
            if step < steps and self._seconds - self._reported > REPORT_EVERY:
                self._report(epochs + 1)
        self._end_epoch()

    def _end_epoch(self) -> None:
        self._diverged = not all(
            bool(weights.isfinite().all()) for weights in self._module.state_dict().values()
        )
        self._epochs += 1
        self._score = math.nan if self._diverged else self._judge()
        best = self._best_score
        if best is None or math.isnan(best) or self._score >= best:
            self._keep_best(self._score)
        self._spent = self._used(self._epochs)

    def _judge(self) -> float:
        began = time.monotonic()
        score = self._problem.score()
        self._judging = time.monotonic() - began
        return score

    def _keep_best(self, score: float) -> None:
        self._score = self._best_score = score
        self._best_epoch = self._epochs
        self._best = {
            name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()
        }

    def _report(self, epoch: int) -> None:
        if self._on_progress is None:
            return
        self._reported = now = self._seconds
        left = now / self._spent - now if self._spent else None
        self._on_progress(Progress(self._spent, epoch, now, left, self._score, self._best_score))

    # The checkpoint

    def _save(self) -> None:
        """Write the checkpoint, replacing the one before it in one step."""
        tensors: Weights = {}
        for prefix, values in (("module", self._module.state_dict()), ("best", self._best)):
            tensors |= {f"{prefix}/{name}": value for name, value in values.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        run = {
            "epochs": self._epochs,
            "seconds": self._seconds,
            "best_epoch": self._best_epoch,
            "best_score": self._best_score,
            "options": self._options,
        }
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(self._checkpoint, tensors, {"run": json.dumps(run)})
        except OSError as error:
            raise TrainingError(
                f"cannot write the checkpoint {self._checkpoint}: {error}"
            ) from error

    def load(self) -> None:
        """Continue from the checkpoint.

        Raises TrainingError if there is no sound one, or its run had other options.
        """
        path = self._checkpoint
        if not path.is_file():
            raise TrainingError(f"there is nothing to resume at {path}; run without --resume")
        parts: dict[str, Weights] = {"module": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as file:
                run: dict[str, Any] = json.loads(file.metadata()["run"])
                for key in file.keys():  # noqa: SIM118  # it has keys, but cannot be iterated
                    part, name = key.split("/", 1)
                    parts[part][name] = file.get_tensor(key)
            self._check_options(run["options"])
            self._module.load_state_dict(parts["module"])
            self._restore_optimizer(parts["optimizer"])
            self._epochs, self._best_epoch = run["epochs"], run["best_epoch"]
            self._score = self._best_score = run["best_score"]
            self._best = parts["best"]
            self._began -= run["seconds"]
        except (
            SafetensorError,
            OSError,
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            raise TrainingError(
                f"the checkpoint {path} is damaged ({error}); run without --resume"
            ) from error

    def _check_options(self, before: RunOptions) -> None:
        changed = [
            f"{name} {was}, now {self._options.get(name)}"
            for name, was in before.items()
            if was != self._options.get(name)
        ]
        if changed:
            raise TrainingError(
                f"the run at {self._checkpoint} had other options ({'; '.join(changed)}); resume "
                "with the same options or run without --resume"
            )

    def _restore_optimizer(self, values: Weights) -> None:
        state = self._optimizer.state_dict()
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for key, value in values.items():
            index, name = key.split("/")
            like = weights[int(index)]
            # The fused optimiser walks through memory: moments must be laid out as their weights.
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state["state"].setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(state)


def save_tensors(path: Path, tensors: Weights, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, replacing it in one step. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    try:
        # Not by save_file, which leaves a file of a random name where it is killed.
        content = {name: value.contiguous() for name, value in tensors.items()}
        beside.write_bytes(save(content, metadata))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
