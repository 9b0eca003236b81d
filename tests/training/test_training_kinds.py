"""What predictions are decides how they are learned: boxes and values as well as classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from parity_models.codes import CodeSpec
from parity_models.models.bundle import open_bundle
from parity_models.tasks import Dataset, Split, Task, find_task
from parity_models.training import TrainingOptions
from parity_models.training.device import mirror
from parity_models_lab.deployed import mirror_boxes, train_deployed
from trainings import evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "spec", [CodeSpec("stack", "separate", 2), CodeSpec("sum", "subtraction", 2)]
)
def test_reconstructions_of_values_explain_nearly_as_much(spec: CodeSpec, tmp_path: Path) -> None:
    task = find_task("diabetes")
    data = task.load()
    deployed = train_deployed(task, data, "mlp", tmp_path / "f", TrainingOptions(epochs=20))
    bundle = train_parity(
        deployed, spec, data.train.inputs, tmp_path / "p", TrainingOptions(epochs=60),
        network="mlp", validation=data.validation, metric=task.metric,
    )  # fmt: skip
    accuracy = evaluate(bundle, data.test.inputs, data.test.labels, metric=task.metric)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.agreement is not None
    assert accuracy.available_accuracy > 0.3
    assert accuracy.degraded_accuracy > 0.8 * accuracy.available_accuracy
    assert accuracy.agreement > 0.7


def test_a_backup_for_values_imitates_them(tmp_path: Path) -> None:
    task = find_task("diabetes")
    data = task.load()
    deployed = train_deployed(task, data, "mlp", tmp_path / "f", TrainingOptions(epochs=20))
    bundle = train_backup(
        deployed,
        "linear",
        data.train.inputs,
        tmp_path / "b",
        TrainingOptions(epochs=60),
        metric="r2",
    )
    accuracy = evaluate(bundle, data.test.inputs, data.test.labels, metric="r2")
    assert accuracy.backup_accuracies
    assert accuracy.backup_accuracies[0] > 0.8 * accuracy.available_accuracy


class Squares(Task):
    """Where is the bright square in a picture of 12x12?"""

    name = "squares"
    metric = "iou"
    flips = True

    def load(self, folder: Path | None = None) -> Dataset:
        random = np.random.default_rng(0)
        left, top = random.integers(0, 7, (2, 900))
        rows, columns = np.arange(12)[:, None], np.arange(12)
        inside = [
            (rows >= y) & (rows < y + 5) & (columns >= x) & (columns < x + 5)
            for x, y in zip(left, top, strict=True)
        ]
        inputs = np.array(inside, np.float32)[:, None] + random.normal(0, 0.1, (900, 1, 12, 12))
        labels = np.stack([left, top, left + 5, top + 5], axis=1) / 12
        every = Split(inputs.astype(np.float32), labels.astype(np.float32))
        train, validation, test = (every.take(r) for r in np.split(np.arange(900), [700, 800]))
        return Dataset(train, validation, test)


def test_boxes_are_found_and_reconstructed(tmp_path: Path) -> None:
    task = Squares()
    data = task.load()
    outcome = train_deployed(task, data, "mlp", tmp_path / "f", TrainingOptions(epochs=40))
    bundle = train_parity(
        outcome, CodeSpec("stack", "separate", 2), data.train.inputs, tmp_path / "p",
        TrainingOptions(epochs=40), validation=data.validation, metric="iou", hflip=True,
    )  # fmt: skip
    accuracy = evaluate(bundle, data.test.inputs, data.test.labels, metric="iou")
    assert accuracy.degraded_accuracy is not None
    assert accuracy.available_accuracy > 0.7
    assert accuracy.degraded_accuracy > 0.7 * accuracy.available_accuracy
    assert open_bundle(bundle.path).manifest.deployed.signature.output.shape == (4,)


class Tones(Task):
    """Which of three tones is in 48 noisy samples of two channels?"""

    name = "tones"
    metric = "top-1"

    def load(self, folder: Path | None = None) -> Dataset:
        random = np.random.default_rng(0)
        labels = random.integers(0, 3, 900)
        cycles, phase = 3 + 2 * labels[:, None, None], random.uniform(0, 7, (900, 1, 2))
        wave = np.sin(2 * np.pi * cycles * np.arange(48)[:, None] / 48 + phase)
        noisy = (wave + random.normal(0, 0.7, wave.shape)).astype(np.float32)
        train, validation, test = (
            Split(noisy[rows], labels[rows]) for rows in np.split(np.arange(900), [600, 700])
        )
        return Dataset(train, validation, test, classes=("low", "middle", "high"))


def test_sequences_are_told_apart_and_reconstructed(tmp_path: Path) -> None:
    task = Tones()
    data = task.load()
    assert data.input_shape == (48, 2)
    deployed = train_deployed(task, data, "resnet-1d", tmp_path / "f", TrainingOptions(epochs=6))
    bundle = train_parity(
        deployed, CodeSpec("stack", "separate", 2), data.train.inputs, tmp_path / "p",
        TrainingOptions(epochs=6), validation=data.validation,
    )  # fmt: skip
    assert bundle.manifest.parity[0].network == "resnet-1d"
    accuracy = evaluate(bundle, data.test.inputs, data.test.labels)
    assert accuracy.available_accuracy > 0.9
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.85


def test_boxes_turn_with_their_pictures() -> None:
    split = Squares().load().test
    boxes = torch.from_numpy(split.labels)
    pictures = torch.from_numpy(split.inputs)
    turned = mirror(pictures, torch.ones(len(pictures), dtype=torch.bool))
    for picture, box in zip(turned[:20], mirror_boxes(boxes)[:20], strict=True):
        left, top, right, bottom = (12 * box).round().int().tolist()
        assert picture[0, top:bottom, left:right].mean() > 0.8
        assert picture[0, top:bottom, left:right].sum() > 0.8 * picture[0].abs().sum() - 12
    torch.testing.assert_close(mirror_boxes(mirror_boxes(boxes)), boxes)
