"""Stand-ins learn from queries of named inputs: integers, several inputs, lengths that vary."""

from pathlib import Path

import numpy as np
import pytest

from commands import invoke
from onnx_models import output_of
from parity_models.errors import DataError, TrainingError, UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.envelope import Envelope
from parity_models.models.queries import pad
from parity_models.training import TrainingOptions
from parity_models.training.teacher import rows_of, teacher_of
from text_models import WORDS, TextModel, expected, texts, write_text_folder
from trainings import train_backup

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text model of two outputs, a bundle of it, and queries of any length."""
    made = tmp_path_factory.mktemp("named")
    write_text_folder(made, TextModel())
    return made


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Bundle:
    return teacher_of(open_bundle(folder / "deployed"), "logits").bundle


def test_parm_backup_trains_a_bag_of_words_for_one_output_of_a_text_model(folder: Path) -> None:
    command = ["backup", "--from", str(folder / "deployed"), "--network", "text@units=32"]
    command += ["--output", "logits", "--inputs", str(folder / "inputs.npz"), "--epochs", "8"]
    result = invoke(*command, "--out", str(folder / "backed"))
    assert result.exit_code == 0, result.output
    bundle = open_bundle(folder / "backed")
    manifest = bundle.manifest
    assert manifest.imitated == "logits"
    assert manifest.accuracy is not None
    assert manifest.accuracy.backup_accuracies
    assert manifest.accuracy.backup_accuracies[0] > 0.85
    assert manifest.calibration["backup"].levels
    assert manifest.backups
    backup = bundle.pinned(manifest.backups[0]).load()
    signature = manifest.deployed.signature
    queries = texts(200, 4)
    wider = {name: np.pad(each, ((0, 0), (0, 12))) for name, each in queries.items()}
    said = output_of(backup, pad(queries, signature, [4]))
    np.testing.assert_allclose(
        output_of(backup, pad(wider, signature, [16])), said, rtol=1e-3, atol=1e-4
    )
    agreed = said.argmax(axis=1) == expected(queries)["logits"].argmax(axis=1)
    assert agreed.mean() > 0.8
    beyond = {**queries, "ids": queries["ids"] + WORDS}  # ids that there are not
    assert np.isfinite(output_of(backup, pad(beyond, signature, [4]))).all()
    envelope = bundle.envelope()
    assert isinstance(envelope, Envelope)
    assert envelope.unlike(texts(500, 16, 1)).mean() <= 0.02
    assert envelope.unlike(beyond).all()


@pytest.mark.parametrize(
    ("network", "rows", "error", "message"),
    [
        ("mlp", 50, TrainingError, "choose text"),
        ("text@units=0", 50, TrainingError, "units"),
        ("text", 1, DataError, "too few"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(
    deployed: Bundle,
    folder: Path,
    tmp_path: Path,
    network: str,
    rows: int,
    error: type[Exception],
    message: str,
) -> None:
    inputs = rows_of(teacher_of(deployed), folder / "inputs.npz", 1)[:rows]
    with pytest.raises(error, match=message):
        train_backup(deployed, network, inputs, tmp_path / "out", TrainingOptions(epochs=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "name the one that stand-ins imitate with --output"),
        (("--output", "pooled"), "no output 'pooled'; it has logits, hidden"),
        (("--output", "hidden"), "cannot be imitated"),
    ],
)
def test_an_output_that_cannot_be_imitated_is_refused(
    folder: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    inputs = ("--inputs", str(folder / "inputs.npz"))
    command = ("backup", "--from", str(folder / "deployed"), "--network", "text", *inputs)
    with pytest.raises(UserError) as error:
        invoke(*command, "--out", str(tmp_path / "out"), *more)
    assert message in str(error.value)


def parity(folder: Path, out: Path, *more: str) -> tuple[str, ...]:
    queries = ("--output", "logits", "--inputs", str(folder / "inputs.npz"))
    return ("parity", "--from", str(folder / "deployed"), *queries, "--out", str(out), *more)


def test_parm_parity_stacks_ids_and_answers_each_slot_as_the_backup_that_it_is_made_of(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = invoke(*parity(folder, out, "--network", "text@units=32", "--epochs", "8", "--k", "3"))
    assert result.exit_code == 0, result.output
    bundle = open_bundle(out)
    accuracy = bundle.manifest.accuracy
    assert bundle.isolated
    assert isinstance(bundle.envelope(), Envelope)
    assert bundle.manifest.backups
    assert bundle.manifest.backups[0].slot
    assert accuracy is not None
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.85
    assert accuracy.backup_accuracies[0] == pytest.approx(accuracy.degraded_accuracy, abs=0.01)
    assert len(accuracy.degraded_by_slot) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--encoder", "sum", "--decoder", "subtraction"), "of input 'ids': the sum encoder"),
        (("--r", "2"), "use r=1"),
    ],
)
def test_codes_that_ids_cannot_have_are_refused(
    folder: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as error:
        invoke(*parity(folder, tmp_path / "out", *more))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
