"""An approximate backup is trained from unlabelled queries and kept in the bundle."""

from pathlib import Path

import pytest

from own_models import DIGITS, STACK
from parity_models.errors import TrainingError
from parity_models.models.bundle import open_bundle, with_measured, write_bundle
from parity_models.models.gate import Calibration, GateLevel
from parity_models.training import Trained, TrainingOptions
from trainings import evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow

INPUTS = DIGITS.train.inputs


def test_a_backup_imitates_without_labels(deployed: Trained, tmp_path: Path) -> None:
    one, other, settings = tmp_path / "one", tmp_path / "other", TrainingOptions(epochs=20)
    coded = train_parity(deployed, STACK, INPUTS, one)
    backed = train_backup(deployed, "linear", INPUTS, other, settings)
    assert [each.network for each in backed.manifest.backups] == ["linear"]
    (training,) = backed.manifest.backup_trainings
    assert training is not None
    assert (training.task, training.inputs, training.epochs) == ("digits", 1080, 20)
    accuracy = evaluate(backed, DIGITS.test.inputs, DIGITS.test.labels)
    assert accuracy.backup_accuracies[0] > 0.9
    first = train_backup(coded, "linear", INPUTS, one, settings).manifest
    second = train_parity(backed, STACK, INPUTS, other).manifest
    assert first.parity == second.parity == coded.manifest.parity
    assert first.backups == second.backups == backed.manifest.backups
    assert first.files[0] == second.files[0] == deployed.manifest.files[0]
    assert open_bundle(one).code() is not None


def test_another_backup_joins_the_fastest_first(deployed: Trained, tmp_path: Path) -> None:
    path = tmp_path / "two"
    trained = train_backup(deployed, "mlp", INPUTS, path)
    gate = Calibration("classes", 0.0, "scores", 100, 0.05, (GateLevel(0.9, 0.0, 0.8, 0.9),))
    slow = with_measured(trained, calibration={"backup": gate})
    both = train_backup(slow, "linear", INPUTS, path, keep=True).manifest
    assert [each.network for each in both.backups] == ["linear", "mlp"]
    assert both.inference_times is not None
    assert both.inference_times.backups[0] < both.inference_times.backups[1]
    networks = [each and each.recipe["network"] for each in both.backup_trainings]
    assert networks == ["linear", "mlp"]
    assert both.calibration == {"backup-2": gate}  # it goes where its backup goes
    accuracy = evaluate(open_bundle(path), DIGITS.test.inputs, DIGITS.test.labels)
    assert len(accuracy.backup_accuracies) == 2
    alone = train_backup(open_bundle(path), "linear", INPUTS, path).manifest
    assert [each.network for each in alone.backups] == ["linear"]
    own = deployed.stored(deployed.manifest.deployed)
    four = write_bundle(tmp_path / "four", deployed=own, backups=[own] * 4)
    with pytest.raises(TrainingError, match="has 4 backups, and may not have more"):
        train_backup(four, "linear", INPUTS, path, keep=True)
