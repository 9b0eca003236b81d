"""A log of queries and answers becomes a bundle without a model, for use in front of the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import parity_models as pm
from commands import Here, succeeded
from onnx_models import graph_model
from parity_models.bundle.bundle import Accuracy
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.errors import DataError, ModelError, TrainingError, UserError
from present import some
from string_models import CLASSES, exported, predict, texts, write_log

SAID = texts(1200)
LOG = [(text, CLASSES[row % 3]) for row, text in enumerate(SAID.ravel().tolist())]


def agreement_in(made: pm.Protected) -> float:
    """The share of held-out queries that the backup answers as the log does."""
    assert isinstance(made.report, Accuracy)
    return some(made.report.backup_accuracy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> pm.Bundle:
    return pm.protect(
        pairs=write_log(folder / "log.jsonl", LOG), out=folder / "bundle", agreement=0.9
    )


def test_a_log_becomes_a_calibrated_stand_in(bundle: pm.Protected) -> None:
    assert agreement_in(bundle) > 0.95
    assert some(bundle.gates["backup"].at_least(0.9)).coverage > 0.9
    assert bundle.manifest.labels == CLASSES
    assert "1,200 lines" in str(bundle)


def test_the_stand_in_reads_texts_wherever_its_file_is_run(bundle: pm.Bundle) -> None:
    model = bundle.pinned(some(bundle.manifest.backup)).load()
    rows = texts(9, seed=3)
    (together,) = model({"text": rows}).values()
    alone = [next(iter(model({"text": rows[i : i + 1]}).values())) for i in range(9)]
    assert np.array_equal(together, np.concatenate(alone))
    assert together.argmax(axis=1).tolist() == [0, 1, 2] * 3
    assert np.allclose(together.sum(axis=1), 1)


def test_what_needs_the_model_says_where_it_is(bundle: pm.Bundle, folder: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"), pm.serve(bundle, port=0):
        pass
    with pytest.raises(ModelError, match="holds no model"):
        pm.evaluate(bundle, texts(60))
    with pytest.raises(UserError, match="runs elsewhere"):
        pm.export_repository(bundle, folder / "repository")
    with pytest.raises(UserError, match="service_time"):
        pm.simulate(bundle)


def test_other_commands_do_without_it(bundle: pm.Bundle, folder: Path) -> None:
    log = write_log(folder / "other.jsonl", [*LOG[::2], ("what is this", "unknown")])
    found = pm.evaluate(pm.open_bundle(bundle.path), log)
    assert found.accuracy.queries == 601
    assert 0.9 < (found.accuracy.backup_accuracy or 0) < 1
    assert pm.calibrate(pm.open_bundle(bundle.path), log).gates["backup"].queries == 601
    assert "adaptive" in str(pm.simulate(bundle, service_time=0.02, queries=3000))


def test_answers_of_another_kind_are_refused(bundle: pm.Bundle, folder: Path) -> None:
    with pytest.raises(DataError, match=r"the answers in .* are numbers"):
        pm.evaluate(bundle, write_log(folder / "numbers.jsonl", [("x", 1), ("y", 2)]))


def test_clients_get_labels_from_the_model_and_from_stand_ins(bundle: pm.Bundle) -> None:
    with pm.serve(bundle, stand_in_only=True, port=0, agreement=0) as upstream:
        engine = f"remote@deployed={upstream.url}"
        with pm.serve(bundle, engine=engine, policy="none", port=0) as server:
            result = server.predict({"text": texts(3, seed=4)})
    assert result.outputs["answer"].ravel().tolist() == [*CLASSES]


def test_few_lines_start_with_a_closed_gate(folder: Path) -> None:
    made = pm.protect(pairs=write_log(folder / "few.jsonl", LOG[:24]), out=folder / "few")
    assert made.gates["backup"].levels == ()
    with pytest.raises(DataError, match="3 distinct queries, too few"):
        pm.protect(pairs=write_log(folder / "few.jsonl", LOG[:3] * 20), out=folder / "few")


def test_the_newest_queries_calibrate(folder: Path) -> None:
    lines = [
        {"text": text, "answer": answer if row < 540 else "card", "time": row}
        for row, (text, answer) in enumerate(LOG[:600])
    ]
    path = folder / "timed.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    made = pm.protect(pairs=path, out=folder / "timed")
    assert agreement_in(made) < 0.6, "the answers have changed since"


@pytest.mark.slow
@pytest.mark.parametrize("values", [1, 3])
def test_a_log_of_numbers_trains_a_network(folder: Path, values: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 4)).round(4)
    answers = rows @ rng.normal(size=(4, values))
    path = folder / "numbers.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"inputs": {"x": row.tolist()}, "answer": answer.tolist()})
            for row, answer in zip(rows, answers, strict=True)
        )
    )
    made = pm.protect(pairs=path, out=folder / "numeric", minutes=0.2, metric="r2")
    assert agreement_in(made) > 0.8


@pytest.mark.slow
def test_a_model_of_texts_gets_a_stand_in_that_reads_texts(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(exported())
    made = pm.protect(folder / "model.onnx", SAID, out=folder / "protected")
    backup = OnnxModel(made.path / some(made.manifest.backup).file)
    fresh = texts(30, seed=9)
    (given,) = backup({"text": fresh}).values()
    said = predict(fresh)["probabilities"].argmax(axis=1)
    assert (given.argmax(axis=1) == said).mean() > 0.9


def test_numbers_of_any_size_are_learned_from_texts(folder: Path) -> None:
    log = [(text, 1e7 * CLASSES.index(label)) for text, label in LOG]
    made = pm.protect(pairs=write_log(folder / "sums.jsonl", log), out=folder / "sums")
    assert agreement_in(made) > 0.8


def test_a_model_that_gives_texts_no_row_of_numbers_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Equal", ["text", "first"], ["same"]),
        helper.make_node("Cast", ["same"], ["score"], to=TensorProto.FLOAT),
    ]
    given, score = {"text": (TensorProto.STRING, ["n"])}, {"score": (TensorProto.FLOAT, ["n"])}
    content = graph_model(nodes, given, score, {"first": SAID[0]}, {"": 19})
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(TrainingError, match="gives a row of numbers"):
        pm.protect(tmp_path / "m.onnx", SAID[:60, 0], out=tmp_path / "bundle")


def test_the_command_shows_what_it_read(folder: Path, parm_here: Here) -> None:
    log = write_log(folder / "shown.jsonl", [*LOG[:300], ("oh", "Loan")])
    result = succeeded(parm_here("protect", "--pairs", str(log), "--out", str(folder / "shown")))
    assert "labels that differ by case or spaces only: 'Loan', 'loan'" in result.stdout
    assert "parm serve" in result.stdout
    result = parm_here("protect", "--pairs", str(log), "--model", "x", "--out", "y")
    assert result.returncode != 0
    assert "--pairs" in result.stderr
