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
from parity_models.protection import Queries, Wishes
from parity_models.protection.audience import Audience
from parity_models.protection.finalists import Entry
from parity_models.protection.preparing import prepare
from parity_models.protection.slots import in_slots
from parity_models.training import train_backup
from parity_models.training.held_out import load_rows
from parity_models.training.named_candidates import TOGETHER, propose_named
from parity_models.training.parity import ParityModels
from parity_models.training.slots import train_slots
from parity_models.training.stand_in_network import queried
from parity_models.training.subject import subject_of
from parity_models.training.trainee import Trainee

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
    rows = load_rows(folder / "inputs.npz", SIGNATURE)
    with pytest.raises(TrainingError, match="superposition answers several queries at once"):
        train_backup(deployed, "superposition", rows, tmp_path / "backed")
    with pytest.raises(TrainingError, match="there is no network 'nothing'"):
        train_slots(deployed, TOGETHER, "nothing", rows, tmp_path / "coded")


def test_fewer_blocks_are_proposed_and_a_superposition_and_the_search_trains_them(
    deployed: Bundle, folder: Path, tmp_path: Path
) -> None:
    rows = load_rows(folder / "inputs.npz", SIGNATURE)
    told, subject = queried(deployed, rows), subject_of(deployed)
    candidates, _ = propose_named(deployed, subject, told, commonest(rows, SIGNATURE))
    proposed = {each.network: each for each in candidates}
    assert OwnTransformer.proposals(told) == ("own-transformer@1",)
    assert proposed["superposition"].code == TOGETHER
    queries = Queries(rows[:400], None, rows[400:500], rows[500:], None, None, False)
    prepared = prepare(deployed, queries, Wishes(), Audience())
    trainee = Trainee(proposed["superposition"], prepared.teaching)
    trainee.train(0.5, 0, tmp_path / "checkpoint", False, None)
    assert trainee.score > 0
    made = trainee.exported()
    assert isinstance(made, ParityModels)
    assert made.slot is None
    coded, refused = in_slots([Entry(trainee.candidate, made, trainee)], subject)
    assert not coded
    assert set(refused.values()) == {"no backup was found"}
