"""What parm protect finds for a model of named inputs: backups, and the same in k slots."""

from pathlib import Path

import pytest
import torch

from parity_models.models.bundle import open_bundle
from parity_models.models.envelope import Envelope
from parity_models.protection.finalists import Entry, in_slots, measure
from parity_models.protection.protect import Prepared, prepare, protect_model
from parity_models.protection.search_options import SearchOptions
from parity_models.training import Callbacks, Queries
from parity_models.training.candidates import Proposal
from parity_models.training.queries import rows_of
from parity_models.training.recipes import Budget
from parity_models.training.teacher import Teacher, teacher_of
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
def teacher(folder: Path) -> Teacher:
    return teacher_of(open_bundle(folder / "deployed"), "logits")


@pytest.fixture(scope="module")
def prepared(folder: Path, teacher: Teacher) -> Prepared:
    return prepare(teacher, divided(folder, teacher), SearchOptions(), Callbacks())


def divided(folder: Path, teacher: Teacher) -> Queries:
    rows = rows_of(teacher, folder / "inputs.npz", 1)
    return Queries.of(rows[:1400], calibration=rows[1400:1700], test=rows[1700:])


def trained(prepared: Prepared, folder: Path, network: str, share: float, score: float) -> Entry:
    """A backup that has learned for a second, and is said to take this share of the time and to
    have this score."""
    candidate = prepared.lesson.candidate(Proposal(network, None, share))
    candidate.fit(Budget(seconds=1.0), folder / f"{network}.checkpoint", options={})
    candidate.score = score
    return Entry(candidate.proposal, candidate.exported(), candidate)


def test_for_each_k_the_best_backup_that_fits_k_times_is_a_parity_model(
    prepared: Prepared, teacher: Teacher, tmp_path: Path
) -> None:
    backups = [
        trained(prepared, tmp_path, "text@128", 0.45, 0.9),
        trained(prepared, tmp_path, "text@32", 0.3, 0.8),
    ]
    coded, refused = in_slots(backups, teacher)
    assert [each.proposal.name for each in coded] == [
        "parity text@128 stack+separate k=2",
        "parity text@32 stack+separate k=3",
    ]
    assert refused == {
        "parity stack+separate k=4": "4 runs of the fastest backup that was found, text@32, take "
        "1.20 of the model's time"
    }
    base, finalists = measure(
        [*backups, *coded], teacher.bundle, prepared.measured, 0.5, [1, 4], tmp_path / "bundles"
    )
    assert set(base) == {1, 4}
    for backup, parity in zip(finalists[:2], finalists[2:], strict=True):
        assert parity.coded
        assert parity.agreement == pytest.approx(backup.agreement, abs=0.01)
        assert parity.slot_ms is not None
        assert parity.calibration.keys() == {"reconstruction", "backup"}


def test_backups_are_compared_with_the_same_in_slots(
    folder: Path, teacher: Teacher, tmp_path: Path
) -> None:
    options = SearchOptions(minutes=0.2, agreement=0.3, extra_work=10)
    out = tmp_path / "protected"
    report = protect_model(teacher, divided(folder, teacher), out, options).report
    told = [each.name for each in report.finalists] + list(report.dropped)
    for k in (2, 3, 4):
        assert any(name.endswith(f"stack+separate k={k}") for name in told)
    bundle = open_bundle(out)
    assert bundle.manifest.backups
    assert isinstance(bundle.envelope(), Envelope)
