"""A transformer's own layers as stand-ins: proposed, trained, and what they are said to be."""

from pathlib import Path

import pytest

from commands import invoke
from encoder_models import CLASSES, SIGNATURE, sentences, write_encoder
from onnx_models import output_of
from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.envelope import Envelope
from parity_models.models.networks.own_transformer import OwnTransformer
from parity_models.models.queries import commonest, pad
from parity_models.protection.finalists import Entry, in_slots
from parity_models.protection.protect import prepare
from parity_models.protection.search_options import SearchOptions
from parity_models.training import Callbacks, Queries
from parity_models.training.networks import queried_of
from parity_models.training.proposals import JOINT, propose_named
from parity_models.training.queries import rows_of
from parity_models.training.recipes import Budget
from parity_models.training.teacher import teacher_of
from trainings import train_backup, train_parity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    write_encoder(made)
    return made


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Bundle:
    return open_bundle(folder / "deployed")


def test_a_superposition_is_a_parity_model_whose_slots_are_not_isolated(
    folder: Path, tmp_path: Path
) -> None:
    command = ["parity", "--from", str(folder / "deployed"), "--network", "superposition"]
    command += ["--inputs", str(folder / "inputs.npz"), "--epochs", "6"]
    result = invoke(*command, "--out", str(tmp_path / "coded"))
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "coded")
    [parity] = bundle.manifest.parity
    assert (parity.network, parity.slotwise) == ("superposition", False)
    assert not bundle.isolated
    assert not bundle.manifest.backups
    assert isinstance(bundle.envelope(), Envelope)
    code = bundle.code()
    assert code is not None
    one, other = (pad(sentences(200, seed), SIGNATURE, [12]) for seed in (3, 4))
    answers = output_of(bundle.pinned(parity).load(), code.encode([one, other])[0])
    assert answers.shape == (200, 2, CLASSES)
    run = bundle.pinned(bundle.manifest.deployed).load()
    for slot, queries in enumerate((one, other)):
        # Each slot says more of its own query than of the other one.
        own, others = (
            output_of(run, each).argmax(axis=1) for each in (queries, (other, one)[slot])
        )
        said = answers[:, slot].argmax(axis=1)
        assert (said == own).mean() > (said == others).mean()


def test_a_superposition_is_no_backup(deployed: Bundle, folder: Path, tmp_path: Path) -> None:
    rows = rows_of(teacher_of(deployed), folder / "inputs.npz", 1)
    with pytest.raises(TrainingError, match="superposition answers several queries at once"):
        train_backup(deployed, "superposition", rows, tmp_path / "backed")
    with pytest.raises(TrainingError, match="there is no network 'nothing'"):
        train_parity(deployed, JOINT, rows, tmp_path / "coded", network="nothing")


def test_fewer_blocks_are_proposed_and_a_superposition_and_the_search_trains_them(
    deployed: Bundle, folder: Path, tmp_path: Path
) -> None:
    teacher = teacher_of(deployed)
    rows = rows_of(teacher, folder / "inputs.npz", 1)
    queried = queried_of(teacher, rows)
    proposals, _ = propose_named(teacher, queried, commonest(rows, SIGNATURE))
    proposed = {each.network: each for each in proposals}
    assert OwnTransformer.proposals(queried) == ("own-transformer@1",)
    assert proposed["superposition"].code == JOINT
    queries = Queries.of(rows[:400], 2, calibration=rows[400:500], test=rows[500:])
    prepared = prepare(teacher, queries, SearchOptions(), Callbacks())
    candidate = prepared.lesson.candidate(proposed["superposition"])
    candidate.fit(Budget(seconds=0.5), tmp_path / "checkpoint", options={})
    assert candidate.score > 0
    made = candidate.exported()
    assert made.backup is None
    coded, refused = in_slots([Entry(candidate.proposal, made, candidate)], teacher)
    assert not coded
    assert set(refused.values()) == {"no backup was found"}
