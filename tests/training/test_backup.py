"""An approximate backup is trained from unlabelled queries and kept in the bundle."""

from pathlib import Path

import pytest

from own_models import DIGITS, STACK
from parity_models.models.bundle import open_bundle
from parity_models.training import Trained, TrainingOptions
from trainings import evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow

INPUTS = DIGITS.train.inputs


def test_a_backup_imitates_without_labels(deployed: Trained, tmp_path: Path) -> None:
    one, other, settings = tmp_path / "one", tmp_path / "other", TrainingOptions(epochs=20)
    coded = train_parity(deployed, STACK, INPUTS, one)
    backed = train_backup(deployed, "linear", INPUTS, other, settings)
    backup, training = backed.manifest.backup, backed.manifest.backup_training
    assert backup is not None
    assert backup.network == "linear"
    assert training is not None
    assert (training.task, training.inputs, training.epochs) == ("digits", 1080, 20)
    accuracy = evaluate(backed, DIGITS.test.inputs, DIGITS.test.labels)
    assert (accuracy.backup_accuracy or 0) > 0.9
    first = train_backup(coded, "linear", INPUTS, one, settings).manifest
    second = train_parity(backed, STACK, INPUTS, other).manifest
    assert first.parity == second.parity == coded.manifest.parity
    assert first.backup == second.backup == backup
    assert first.files[0] == second.files[0] == deployed.manifest.files[0]
    assert open_bundle(one).code() is not None


def test_another_backup_takes_the_place_of_the_first(deployed: Trained, tmp_path: Path) -> None:
    path, once = tmp_path / "two", TrainingOptions(epochs=1)
    train_backup(deployed, "mlp", INPUTS, path, once)
    manifest = train_backup(open_bundle(path), "linear", INPUTS, path, once).manifest
    assert manifest.backup is not None
    assert manifest.backup.network == "linear"
