"""One command leads from a model and unlabelled queries to a bundle with the best stand-in, or
refuses bad input with one sentence and exit code 2, and writes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from commands import Here, assert_refused, succeeded
from onnx_models import graph_model, linear_model, output_of
from parity_models import Callbacks, ServeOptions, open_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.serving.deployment import Deployment
from parity_models.sizing.protect import (
    Finalist,
    Report,
    SearchOptions,
    measure,
    preferred,
    prepare,
    protect,
)
from parity_models.sizing.scenario import Outcome
from parity_models.training import Queries, open_teacher
from parity_models.training.candidates import Candidate, TrainingContext
from parity_models.training.fit import Budget
from parity_models.training.train import write_trained
from parity_models.trust.envelope import Envelope
from text_models import TextModel, texts, write_text_folder

SHAPE = (6,)
INPUTS = np.random.default_rng(0).normal(size=(3000, *SHAPE)).astype(np.float32)
QUICK = ("--minutes", "0.15", "--agreement", "0.1")
LEVEL = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its queries."""
    made = tmp_path_factory.mktemp("protect")
    weights = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    linear_model(made / "model.onnx", SHAPE, (4,), 3 * weights)
    np.save(made / "inputs.npy", INPUTS)
    return made


def given(folder: Path, *more: str) -> list[str]:
    files = ("--model", str(folder / "model.onnx"), "--inputs", str(folder / "inputs.npy"))
    return ["protect", *files, "--out", str(folder / "bundle"), *QUICK, *more]


@pytest.mark.slow
def test_one_command_finds_and_writes_a_stand_in(folder: Path, parm_here: Here) -> None:
    calm = ("--contention", "{}", "--json", str(folder / "found.json"))
    result = succeeded(parm_here(*given(folder, *calm)))
    for said in ("stand-ins found", "simulated", "hedging", "Simulated: it answers", "95 of 100"):
        assert said in result.stdout
    assert "predictions are logits" in result.stderr
    bundle = open_bundle(folder / "bundle")
    manifest = bundle.manifest
    assert manifest.backup or manifest.parity
    assert None not in (manifest.calibration, manifest.accuracy, manifest.envelope)
    found = json.loads((folder / "found.json").read_text())
    assert found["finalists"][0]["outcome"]["p99_ms"] > 0
    assert found["without"]["p99_ms"] < 2 * found["without"]["p50_ms"], "nothing slows instances"
    assert found["without"]["stood_in"] == found["hedging"]["stood_in"] == 0
    assert all(each["interval"][0] <= each["agreement"] for each in found["finalists"])
    if manifest.backup:
        backup = OnnxModel(folder / "bundle" / manifest.backup.file)
        own = output_of(OnnxModel(bundle.path / "deployed.onnx"), INPUTS).argmax(axis=1)
        same = (output_of(backup, INPUTS).argmax(axis=1) == own).mean()
        measured = [each["agreement"] for each in found["finalists"] if "backup" in each["name"]]
        assert min(abs(same - each) for each in measured) < 0.1


@pytest.mark.slow
def test_a_model_of_named_inputs_is_protected_too(tmp_path: Path) -> None:
    write_text_folder(tmp_path, TextModel())
    found = protect(
        tmp_path / "deployed",
        tmp_path / "inputs.npz",
        out=tmp_path / "protected",
        output="logits",
        minutes=0.35,
        agreement=0.3,
        differ=0.9,
    )
    assert isinstance(found.report, Report)
    assert found.flags in (" --differ 0.9 --agreement 0.3", f" --policy {found.report.rival}")
    assert found.manifest.backup
    assert isinstance(found.envelope(), Envelope)


# Finalists are written


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Iterator[TrainingContext]:
    queries = Queries.of(INPUTS[:1400], calibration=INPUTS[1400:1700], test=INPUTS[1700:])
    with open_teacher(folder / "model.onnx", INPUTS) as teacher:
        yield prepare(teacher, queries, SearchOptions(agreement=LEVEL), Callbacks())[0]


@pytest.mark.slow
def test_chosen_stand_in_is_written_and_served(prepared: TrainingContext, tmp_path: Path) -> None:
    candidate = Candidate("linear", prepared, share=0.2)
    candidate.fit(Budget(seconds=3.0))
    made = candidate.exported()
    _, (finalist,) = measure([candidate], [made], prepared)
    assert finalist.covered > 0
    bundle, found = write_trained(candidate, made, tmp_path / "bundle", keep=False, named=[LEVEL])
    gate = bundle.manifest.calibration["backup"]
    assert gate.at_least(LEVEL) is not None
    assert found is not None
    assert bundle.manifest.accuracy == found.accuracy
    served = Deployment(bundle, ServeOptions(agreement=LEVEL))
    assert served.choice.name == "adaptive"
    assert served.roles[0] == {DEPLOYED, BACKUP}
    assert served.model.gates.keys() == {"backup"}
    assert gate.curve is not None, "without a level, its doubts say when it may answer"


# Simulations, choice and advice


def finalist(name: str, p99: float = 2.0, *, share: float = 0.2, covered: float = 0.9) -> Finalist:
    return Finalist(name, 25 * share, share, 0.9, None, covered, (0.01,), outcome(p99))


def outcome(p99: float, busy: float = 1.0) -> Outcome:
    return Outcome(1.0, p99, 2 * p99, 1.0, 0.1, 0.0, {}, busy, 0.5)


def test_of_stand_ins_that_differ_by_chance_the_one_that_saves_most_is_taken() -> None:
    slow = finalist("slow", share=0.5)
    for p99, better in ((2.05, "fast"), (2.5, "slow")):
        assert preferred([slow, finalist("fast", p99, share=0.1)]).name == better


def test_a_policy_without_a_stand_in_that_does_as_well_is_named_first() -> None:
    best = finalist("backup")
    for p99, helps in ((3.0, True), (2.05, False), (1.5, False)):
        found = Report(
            "top-1", "logits", 0.99, 9.0, [best], outcome(9.0), outcome(p99), 9, 9.0, 9, {}, False
        )
        said = "Recommended: " if helps else "No stand-in helps here: hedging does as well"
        assert found.advice.startswith(said)


# Bad input


ROWS = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
TEXTS = texts(400, 16)
LONG = texts(400, 20)


def noise(path: Path) -> None:
    """A model that nothing learns."""
    row = (TensorProto.FLOAT, ["n", 6])
    nodes = [helper.make_node("Mul", ["x", "factor"], ["z"]), helper.make_node("Sin", ["z"], ["y"])]
    path.write_bytes(graph_model(nodes, {"x": row}, {"y": row}, {"factor": np.float32(1e4)}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain model, one of named inputs, and a bundle of that bounded at 16."""
    folder = tmp_path_factory.mktemp("models")
    write_text_folder(folder, TextModel())
    weights = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    linear_model(folder / "plain.onnx", (6,), (4,), 3 * weights)
    noise(folder / "noise.onnx")
    np.save(folder / "rows.npy", ROWS)
    return folder


PLAIN = "--model {models}/plain.onnx --inputs {models}/rows.npy"
TEXT = "--model {models}/text.onnx --output logits --inputs wrong.npz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "arguments", "reason"),
    [
        (
            LONG,
            "--model {models}/deployed --output logits --inputs wrong.npz",
            "wrong.npz holds a query of 20 along 'length'; the model takes 16 at most",
        ),
        (
            TEXTS | {"ids": np.where(np.arange(400)[:, None] == 300, 10**6, TEXTS["ids"])},
            TEXT,
            "idx=1000000 must be within the inclusive range",
        ),
        ({}, f"{PLAIN} --metric iou", "are not boxes"),
        ({}, f"{PLAIN} --contention none.json", "cannot read the fault plan none.json"),
        ({}, f"{PLAIN} --out {{models}}", "is not a bundle that could be replaced"),
        ({}, f"{PLAIN} --out /proc/x", "nothing can be written to /proc"),
    ],
)
def test_before_anything_is_trained(
    parm_here: Here,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arrays: dict[str, Any],
    arguments: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", **arrays)
    before = {each.name for each in (*tmp_path.iterdir(), *models.iterdir())}
    given = [each.replace("{models}", str(models)) for each in arguments.split()]
    options = ("--out", "bundle", "--minutes", "0.1", "--agreement", "0.5")
    assert_refused(parm_here("protect", *options, *given), reason)
    assert {each.name for each in (*tmp_path.iterdir(), *models.iterdir())} == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["", "noise.onnx"], ids=["too few queries", "nothing agrees"])
def test_level_that_is_not_shown_gets_a_gate_that_starts_closed(
    parm_here: Here, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """40 queries calibrate, and an agreement of 0.95 takes 72."""
    monkeypatch.chdir(tmp_path)
    given = ("protect", *PLAIN.format(models=models).split(), "--out", "bundle")
    given += ("--agreement", "0.95", "--minutes", "0.05")
    done = parm_here(*given, *(("--model", str(models / model)) if model else ()))
    assert done.returncode == 0, done.stderr
    written = open_bundle(tmp_path / "bundle")
    assert not written.manifest.parity
    known = written.manifest.calibration["backup"]
    assert known.queries == 40
    assert known.at_least(0.95) is None
    assert known.curve is not None, "its doubts are known, though the level is not"
    notes = Deployment(written, ServeOptions(agreement=0.95)).notes
    note = next(each for each in notes if "starts closed" in each)
    assert "as 40 queries of calibration do not show an agreement of 0.95" in note
    assert "nor do they tell when" in note or (not model and "may open after some" in note)
