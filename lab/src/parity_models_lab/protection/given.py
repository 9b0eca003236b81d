"""The models that `parm protect` is held to its promises with, and their queries: made once."""

from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile, rmtree

import msgspec
import numpy as np

from parity_models.tasks import Dataset, Task, find_task
from parity_models.tasks.task import Split
from parity_models.training import Settings, train_deployed
from parity_models_lab.real.results import digest

VALIDATED = 1000
"""Images by which the epochs of a model's training are judged."""


class Subject(msgspec.Struct, frozen=True):
    """A model to make: a `network` that learns a `task` from so many images, for so many epochs.

    `inputs` further images, or all there are, are what stand-ins may learn from. `title` says what
    it is.
    """

    title: str
    task: str
    network: str
    learned: int
    epochs: int
    inputs: int


SLOW = Subject(
    "A residual network", "fashion-mnist", "resnet-small@4", learned=10_000, epochs=2, inputs=10_000
)
"""It takes some 3 ms for a query, and computes for that long: large layers would wait for the
memory, for which instances on one machine queue."""

UNNAMED = Subject("An MLP of 784-200-100-10 units", "fashion-mnist", "mlp", 55_000, 10, 10_000)
"""From its ONNX file nobody sees what it was made by."""

QUICK = Subject("A small MLP", "digits", "mlp", 600, 5, 1_000)
"""What both are replaced by where time is short."""


@dataclass(frozen=True)
class Given:
    """A model in ONNX; `inputs` to learn from (.npy) and other `queries` to ask, with their labels
    (.npz)."""

    subject: Subject
    model: Path
    inputs: Path
    queries: Path


def make(subject: Subject, folder: Path, seed: int) -> Given:
    """The model and its queries in `folder`, trained unless it was before.

    Raises DataError where the task's data are not here.
    """
    here = folder / digest(msgspec.json.encode(subject), str(seed))[:8]
    given = Given(subject, here / "model.onnx", here / "inputs.npy", here / "queries.npz")
    if given.model.exists():
        return given
    task = find_task(subject.task)
    data = task.load(None)
    here.mkdir(parents=True, exist_ok=True)
    learned, rest = _split(data.train, subject.learned)
    np.save(given.inputs, (rest if len(rest) else learned).inputs[: subject.inputs])
    np.savez(given.queries, inputs=data.test.inputs, labels=data.test.labels)
    validation = _split(data.validation, VALIDATED)[0]
    _train(task, replace(data, train=learned, validation=validation), given, seed)
    return given


def _train(task: Task, data: Dataset, given: Given, seed: int) -> None:
    bundle = given.model.with_name("trained")
    settings = Settings(epochs=given.subject.epochs, seed=seed)
    trained = train_deployed(task, data, given.subject.network, bundle, settings).bundle
    # Under its name only when it is whole: then nothing is made again.
    copyfile(trained.deployed_path, given.model.with_suffix(".part"))
    given.model.with_suffix(".part").replace(given.model)
    rmtree(bundle)


def _split(split: Split, rows: int) -> tuple[Split, Split]:
    """The first so many rows, and the others."""
    first, rest = slice(rows), slice(rows, None)
    return (
        Split(split.inputs[first], split.labels[first]),
        Split(split.inputs[rest], split.labels[rest]),
    )
