"""What parm protect finds for a model of named inputs: backups, and the same in k slots."""

from pathlib import Path

import pytest
import torch

from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.envelope import Envelope
from parity_models.protection import Queries, Wishes, protect_model
from parity_models.protection.audience import Audience
from parity_models.protection.finalists import Entry, measure
from parity_models.protection.preparing import Prepared, prepare
from parity_models.protection.slots import in_slots
from parity_models.training.candidates import Candidate
from parity_models.training.held_out import load_rows
from parity_models.training.subject import imitating
from parity_models.training.trainee import Trainee
from text_models import TextModel, write_text_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of a text model of two outputs, and queries of any length.

    It says the same of most, so that stand-ins that have hardly learned are good enough.
    """
    made = tmp_path_factory.mktemp("named")
    model = TextModel()
    with torch.no_grad():
        model.head.bias[0] += 2
    write_text_folder(made, model)
    return made


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Bundle:
    return imitating(open_bundle(folder / "deployed"), "logits")


@pytest.fixture(scope="module")
def prepared(folder: Path, deployed: Bundle) -> Prepared:
    return prepare(deployed, divided(folder, deployed), Wishes(), Audience())


def divided(folder: Path, deployed: Bundle) -> Queries:
    rows = load_rows(folder / "inputs.npz", deployed.manifest.deployed.signature)
    return Queries(rows[:1400], None, rows[1400:1700], rows[1700:], None, None, False)


def trained(prepared: Prepared, folder: Path, network: str, share: float, score: float) -> Entry:
    """A backup that has learned for a second, and is said to take this share of the time and to
    have this score."""
    trainee = Trainee(Candidate(network, None, share), prepared.teaching)
    trainee.train(1.0, 0, folder / f"{network}.checkpoint", False, None)
    trainee.score = score
    return Entry(trainee.candidate, trainee.exported(), trainee)


def test_for_each_k_the_best_backup_that_fits_k_times_is_a_parity_model(
    prepared: Prepared, deployed: Bundle, tmp_path: Path
) -> None:
    backups = [
        trained(prepared, tmp_path, "text@128", 0.45, 0.9),
        trained(prepared, tmp_path, "text@32", 0.3, 0.8),
    ]
    coded, refused = in_slots(backups, prepared.teaching.subject)
    assert [each.candidate.name for each in coded] == [
        "parity text@128 stack+separate k=2",
        "parity text@32 stack+separate k=3",
    ]
    assert refused == {
        "parity stack+separate k=4": "4 runs of the fastest backup that was found, text@32, take "
        "1.20 of the model's time"
    }
    base, finalists = measure(
        [*backups, *coded], deployed, prepared.measured, 0.5, [1, 4], tmp_path / "bundles"
    )
    assert set(base) == {1, 4}
    for backup, parity in zip(finalists[:2], finalists[2:], strict=True):
        assert parity.stand_in == "reconstruction"
        assert parity.agreement == pytest.approx(backup.agreement, abs=0.01)
        assert parity.slot_ms is not None
        assert parity.calibration.keys() == {"reconstruction", "backup"}


def test_backups_are_compared_with_the_same_in_slots(
    folder: Path, deployed: Bundle, tmp_path: Path
) -> None:
    out, wishes = tmp_path / "protected", Wishes(minutes=0.2, agreement=0.3, extra_work=10)
    found = protect_model(deployed, divided(folder, deployed), out, wishes)
    told = [each.name for each in found.finalists] + list(found.dropped)
    for k in (2, 3, 4):
        assert any(name.endswith(f"stack+separate k={k}") for name in told)
    bundle = open_bundle(out)
    assert bundle.manifest.backups
    assert isinstance(bundle.envelope(), Envelope)
