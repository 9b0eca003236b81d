"""An approximate backup is trained from unlabelled queries and kept in the bundle."""

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from commands import Here
from own_models import DIGITS, STACK
from parity_models.errors import DataError, TrainingError
from parity_models.models.bundle import open_bundle, with_calibration, write_bundle
from parity_models.models.gate import Calibration, GateLevel
from parity_models.training import Trained, TrainingOptions
from trainings import evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_a_backup_imitates_the_deployed_model_without_labels(
    deployed: Trained, tmp_path: Path, network: str
) -> None:
    outcome = train_backup(
        deployed, network, DIGITS.train.inputs, tmp_path / "bundle", TrainingOptions(epochs=20)
    )
    bundle = open_bundle(outcome.path)
    assert bundle.manifest.backups
    assert bundle.manifest.backups[0].network == network
    (training,) = bundle.manifest.backup_trainings
    assert training is not None
    assert (training.task, training.inputs, training.epochs) == ("digits", 1080, 20)
    accuracy = evaluate(bundle, DIGITS.test.inputs, DIGITS.test.labels)
    assert accuracy.backup_accuracies
    assert accuracy.backup_accuracies[0] > 0.9


def test_a_bundle_gets_its_backup_before_or_after_its_parity_model(
    deployed: Trained, tmp_path: Path
) -> None:
    inputs, once = DIGITS.train.inputs, TrainingOptions(epochs=1)
    one, other = tmp_path / "one", tmp_path / "other"
    coded = train_parity(deployed, STACK, inputs, one, once)
    backed = train_backup(deployed, "linear", inputs, other, once)
    first = train_backup(coded, "linear", inputs, one, once).manifest
    second = train_parity(backed, STACK, inputs, other, once).manifest
    assert first.parity == second.parity == coded.manifest.parity
    assert first.backups == second.backups == backed.manifest.backups
    assert first.files[0] == second.files[0] == deployed.manifest.files[0]
    assert open_bundle(one).code() is not None
    assert open_bundle(other).backup_paths[0] is not None


def test_a_further_backup_comes_beside_those_that_are_kept_the_fastest_first(
    deployed: Trained, tmp_path: Path
) -> None:
    inputs, once = DIGITS.train.inputs, TrainingOptions(epochs=1)
    path = tmp_path / "two"
    trained = train_backup(deployed, "resnet-small", inputs, path, once)
    gate = Calibration("classes", 0.0, "scores", 100, 0.05, (GateLevel(0.9, 0.0, 0.8, 0.9),))
    slow = with_calibration(trained, {"backup": gate})
    both = train_backup(slow, "linear", inputs, path, once, keep=True).manifest
    assert [each.network for each in both.backups] == ["linear", "resnet-small"]
    assert both.inference_times is not None
    assert both.inference_times.backups[0] < both.inference_times.backups[1]
    assert [each and each.recipe["network"] for each in both.backup_trainings] == [
        "linear",
        "resnet-small",
    ]
    assert both.calibration == {"backup-2": gate}  # it goes where its backup goes
    accuracy = evaluate(open_bundle(path), DIGITS.test.inputs, DIGITS.test.labels)
    assert len(accuracy.backup_accuracies) == 2
    alone = train_backup(open_bundle(path), "linear", inputs, path, once).manifest
    assert [each.network for each in alone.backups] == ["linear"]
    four = write_bundle(
        tmp_path / "four",
        deployed=deployed.stored(deployed.manifest.deployed),
        backups=[deployed.stored(deployed.manifest.deployed)] * 4,
    )
    with pytest.raises(TrainingError, match="has 4 backups, and may not have more"):
        train_backup(four, "linear", inputs, path, once, keep=True)


def test_the_same_seed_gives_the_same_backup_and_another_seed_another(
    deployed: Trained, tmp_path: Path
) -> None:
    digests = [
        train_backup(
            deployed,
            "linear",
            DIGITS.train.inputs,
            tmp_path / "bundle",
            TrainingOptions(epochs=2, seed=seed),
            hflip=True,
        ).manifest.backups
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_trained_is_refused(deployed: Trained, tmp_path: Path) -> None:
    out, inputs, once = tmp_path / "bundle", DIGITS.train.inputs, TrainingOptions(epochs=1)
    cases: list[tuple[NDArray[Any], str]] = [
        (inputs[:, :, :7], "has rows of shape"),
        (inputs[:0], "too few"),
    ]
    for wrong, reason in cases:
        with pytest.raises(DataError, match=reason):
            train_backup(deployed, "linear", wrong, out, once)
    with pytest.raises(TrainingError, match="resnet-1d takes sequences"):
        train_backup(deployed, "resnet-1d", inputs, out, once)
    assert not out.exists()


def test_parm_backup_puts_a_backup_and_its_accuracy_into_the_bundle_it_is_given(
    deployed: Trained, tmp_path: Path, parm_here: Here
) -> None:
    bundle = tmp_path / "bundle"
    train_parity(deployed, STACK, DIGITS.train.inputs, bundle, TrainingOptions(epochs=1))
    arguments = ["--from", str(bundle), "--network", "linear", "--out", str(bundle)]
    done = parm_here("backup", *arguments, "--epochs", "20")
    assert done.returncode == 0, done.stderr
    assert "the approximate backup" in done.stdout
    opened = open_bundle(bundle)
    assert opened.code() is not None
    assert opened.manifest.accuracy is not None
    assert opened.manifest.accuracy.backup_accuracies
    assert f"{100 * opened.manifest.accuracy.backup_accuracies[0]:.2f}" in done.stdout
    assert list(tmp_path.iterdir()) == [bundle]
