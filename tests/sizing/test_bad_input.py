"""Bad input to parm protect gives one sentence and exit code 2, and nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from commands import Here, assert_refused
from onnx_models import linear_model
from parity_models.bundle.bundle import open_bundle
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from text_models import TextModel, texts, write_text_folder

pytestmark = pytest.mark.slow

ROWS = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
TEXTS = texts(400, 16)
LONG = texts(400, 20)


def noise(path: Path) -> None:
    """A model that nothing learns."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in "xy"]
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [1e4])
    nodes = [helper.make_node("Mul", ["x", "factor"], ["z"]), helper.make_node("Sin", ["z"], ["y"])]
    graph = helper.make_graph(nodes, "noise", rows[:1], rows[1:], [factor])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)


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
