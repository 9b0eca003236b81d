"""Trainings on arrays, for tests: without gates and accuracy, which other tests look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.bundle import Accuracy, Bundle
from parity_models.codes import CodeSpec
from parity_models.evaluation.judging import measure_accuracy
from parity_models.evaluation.outputs import Outputs
from parity_models.progress import Callbacks, Progress
from parity_models.training import Queries, Trained, TrainingOptions, open_teacher, train
from parity_models.training.network_plans import Factory, ParityPlan, parity_network
from parity_models.training.teacher import Model
from parity_models_lab.tasks import Split, find_task

STACK = CodeSpec("stack", "separate", 2)
DIGITS = find_task("digits").load()
ROWS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)

Parm = Callable[..., str]
"""`parm` in a new folder: gives stdout, or the error of exit code 2."""

Train = Callable[..., Trained]
"""Trains a parity model on the digits into a bundle of the test's folder (fixture `train`)."""

ONCE = TrainingOptions(epochs=1)


def train_parity(
    deployed: Model,
    code: CodeSpec | None,
    inputs: NDArray[Any],
    out: Path,
    options: TrainingOptions = ONCE,
    *,
    network: str | Factory | None = None,
    validation: Split | None = None,
    metric: str | None = None,
    hflip: bool = False,
    plan: ParityPlan = parity_network,
    callbacks: Callbacks | None = None,
) -> Trained:
    """Train the parity models of a code on these inputs; without a code, a backup."""
    if validation is None:
        queries = Queries.of(inputs, 1 if code is None else code.k, metric=metric, hflip=hflip)
    else:
        queries = Queries(inputs, validation.inputs, validation.labels, metric=metric, hflip=hflip)
    with open_teacher(deployed, inputs, options.output) as teacher:
        return train(teacher, queries, out, network, code, options, plan=plan, callbacks=callbacks)


def train_backup(
    deployed: Model,
    network: str,
    inputs: NDArray[Any],
    out: Path,
    options: TrainingOptions = ONCE,
    **more: Any,
) -> Trained:
    """Train a backup on these inputs."""
    return train_parity(deployed, None, inputs, out, options, network=network, **more)


def evaluate(
    bundle: Bundle, inputs: NDArray[Any], labels: NDArray[Any], metric: str = "top-1"
) -> Accuracy:
    """Measure the accuracy on labelled queries."""
    return measure_accuracy(Outputs(bundle, inputs), labels, metric=metric)


def fail_at(share: float, error: BaseException) -> Callable[[Progress], None]:
    """A report that breaks a training off when `share` of its budget is spent."""

    def report(progress: Progress) -> None:
        if progress.work == "training" and progress.done >= share:
            raise error

    return report


def weights(trained: Trained) -> list[str]:
    return [model.sha256 for model in trained.manifest.parity]
