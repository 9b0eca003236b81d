"""What all kinds of training share: the caller's choices, the run, and how it ends."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity_models.errors import BundleError, TrainingError
from parity_models.models.bundle import Bundle, Training, check_replaceable
from parity_models.models.tensor import tensors_in
from parity_models.training.checkpoint import Options
from parity_models.training.device import Network, choose_device, computing, place
from parity_models.training.fit import Fitted, Problem, Report, fit
from parity_models.training.recipes import Recipe
from parity_models.training.schedule import Budget
from parity_models.training.teacher import Told
from parity_models.writable import why_not_writable


@dataclass(frozen=True)
class Settings:
    """How to run a training, where the defaults do not suit.

    It ends after `epochs` or `seconds`, what comes first; with neither, after the recipe's
    number of epochs. On one device the same `seed` gives the same weights, unless a time limit
    intervenes. `device` None is the fastest there is. `resume` goes on from the checkpoint of
    a run that was cut off. `report` is told of progress several times a second, `predicted` how
    many rows a deployed model in ONNX Runtime has just predicted before training.
    """

    epochs: int | None = None
    seconds: float | None = None
    seed: int = 0
    device: str | None = None
    resume: bool = False
    report: Report | None = None
    predicted: Told | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise TrainingError(f"a seed is from 0 to 2³² - 1, not {self.seed}")
        _ = self.budget

    @property
    def budget(self) -> Budget | None:
        """How long to train, where the caller says so. TrainingError for no time at all."""
        if self.epochs is None and self.seconds is None:
            return None
        return Budget(self.epochs, self.seconds)


@dataclass(frozen=True)
class Outcome:
    """A training that ended: the bundle it wrote and how the run went."""

    bundle: Bundle
    fitted: Fitted


def digest(inputs: NDArray[Any]) -> str:
    """The SHA-256 of queries (n, ...)."""
    content = hashlib.sha256()
    for tensor in tensors_in(inputs):
        content.update(np.ascontiguousarray(tensor).data)
    return content.hexdigest()


def check_place(out: Path) -> None:
    """Raise BundleError if a bundle cannot be written to `out`."""
    check_replaceable(out)
    if why := why_not_writable(out.parent):
        raise BundleError(f"{why}; choose another folder")


def check_settings(out: Path, settings: Settings) -> None:
    """Raise what a `Run` would raise at once: before anything else takes its time.

    BundleError if `out` is no place for a bundle, TrainingError for a device that is not there.
    """
    check_place(Path(out).resolve())
    choose_device(settings.device)


class Run:
    """One training that will write a bundle to `out`, from its first preparations on.

    Raises TrainingError for a device that is not there and BundleError, before anything is
    trained, if `out` is no place for a bundle.
    """

    def __init__(self, out: Path, settings: Settings, task: str, inputs: NDArray[Any]) -> None:
        self._began = time.monotonic()
        self.out = out = Path(out).resolve()
        check_place(out)
        self.device = choose_device(settings.device)
        self._checkpoint = out.with_name(f"{out.name}.checkpoint")
        self._settings = settings
        self._task = task
        self._inputs = len(inputs)
        self._sha256 = digest(inputs)

    def build(self, build: Callable[[], Network]) -> Network:
        """What `build` makes, initialised by the run's seed, on the run's device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._settings.seed)
            module = build()
        return place(module, self.device)

    def fit(self, problem: Problem, recipe: Recipe, options: Options) -> Fitted:
        """Train the problem's module as the settings and the recipe say.

        `options` is what besides data and seed determines the result.
        """
        settings = self._settings
        budget = settings.budget or recipe.budget(problem.steps)
        with computing(recipe.threaded):
            return fit(
                problem,
                recipe.schedule,
                budget,
                seed=settings.seed,
                checkpoint=self._checkpoint,
                options={
                    "task": self._task,
                    "inputs": self._sha256,
                    "seed": settings.seed,
                    **options,
                },
                resume=settings.resume,
                report=settings.report,
                began=self._began,
            )

    def record(self, fitted: Fitted, options: Options) -> Training:
        """What the manifest says of this run."""
        return Training(
            task=self._task,
            inputs=self._inputs,
            inputs_sha256=self._sha256,
            seed=self._settings.seed,
            epochs=fitted.epochs,
            seconds=round(fitted.seconds, 2),
            device=str(self.device),
            recipe=options,
        )

    def end(self, bundle: Bundle, fitted: Fitted) -> Outcome:
        """The bundle is written: the checkpoint goes, unless the run could be resumed."""
        if not fitted.interrupted:
            self._checkpoint.unlink(missing_ok=True)
        return Outcome(bundle, fitted)
