"""Stand-ins learn from queries of named inputs: integers, several inputs, lengths that vary."""

from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from onnx_models import output_of
from parity_models.bundle.bundle import open_bundle
from parity_models.errors import TrainingError
from parity_models.tensors.signature import pad
from parity_models.training.teacher import rows_of, teacher_of
from parity_models.trust.envelope import Envelope
from present import some
from text_models import WORDS, TextModel, expected, texts, write_text_folder
from trainings import train_backup


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text model of two outputs, a bundle of it, and queries of any length."""
    made = tmp_path_factory.mktemp("named")
    write_text_folder(made, TextModel())
    return made


def command(name: str, folder: Path, out: Path, *more: str) -> tuple[str, ...]:
    queries = ("--inputs", str(folder / "inputs.npz"), "--out", str(out))
    return (name, "--model", str(folder / "deployed"), *queries, *more)


@pytest.mark.slow
def test_parm_backup_trains_a_bag_of_words(folder: Path, parm_here: Here, tmp_path: Path) -> None:
    out, more = tmp_path / "backed", ("--network", "text@units=32", "--epochs", "8")
    result = parm_here(*command("backup", folder, out, "--output", "logits", *more))
    assert result.returncode == 0, result.stderr
    bundle = open_bundle(out)
    manifest, signature = bundle.manifest, bundle.manifest.deployed.signature
    assert manifest.imitated == "logits"
    assert some(some(manifest.accuracy).backup_accuracy) > 0.85
    assert manifest.calibration["backup"].levels
    backup = bundle.pinned(some(manifest.backup)).load()
    queries = texts(200, 4)
    wider = {name: np.pad(each, ((0, 0), (0, 12))) for name, each in queries.items()}
    short = output_of(backup, pad(queries, signature, [4]))
    long = output_of(backup, pad(wider, signature, [16]))
    np.testing.assert_allclose(long, short, rtol=1e-3, atol=1e-4)
    agreed = short.argmax(axis=1) == expected(queries)["logits"].argmax(axis=1)
    assert agreed.mean() > 0.8
    beyond = {**queries, "ids": queries["ids"] + WORDS}  # ids that do not exist
    assert np.isfinite(output_of(backup, pad(beyond, signature, [4]))).all()
    envelope = bundle.envelope()
    assert isinstance(envelope, Envelope)
    assert envelope.unlike(texts(500, 16, 1)).mean() <= 0.02
    assert envelope.unlike(beyond).all()


@pytest.mark.slow
def test_parm_parity_stacks_ids(folder: Path, parm_here: Here, tmp_path: Path) -> None:
    out, more = tmp_path / "out", ("--network", "text@units=32", "--epochs", "8", "--k", "3")
    result = parm_here(*command("parity", folder, out, "--output", "logits", *more))
    assert result.returncode == 0, result.stderr
    bundle = open_bundle(out)
    assert bundle.isolated
    assert isinstance(bundle.envelope(), Envelope)
    assert some(bundle.manifest.backup).slot
    accuracy = some(bundle.manifest.accuracy)
    degraded = some(accuracy.degraded_accuracy)
    assert degraded > 0.85
    assert accuracy.backup_accuracy == pytest.approx(degraded, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "message"), [("mlp", "choose text"), ("text@units=0", "units")]
)
def test_wrong_network_is_refused(folder: Path, tmp_path: Path, network: str, message: str) -> None:
    deployed = teacher_of(open_bundle(folder / "deployed"), "logits").bundle
    inputs = rows_of(teacher_of(deployed), folder / "inputs.npz", 1)[:50]
    with pytest.raises(TrainingError, match=message):
        train_backup(deployed, network, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--output", "pooled"), "no output 'pooled'; it has logits, hidden"),
        (("--output", "hidden"), "cannot be imitated"),
        (("--output", "logits", "--encoder", "stack@axis=0"), "joins queries along an axis of no"),
        (("--output", "logits", "--r", "2"), "use the encoder stack@new-axis=true"),
    ],
)
def test_outputs_and_codes_that_do_not_fit_are_refused(
    folder: Path, parm_here: Here, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    assert_refused(parm_here(*command("parity", folder, tmp_path / "out", *more)), message)
    assert not (tmp_path / "out").exists()
