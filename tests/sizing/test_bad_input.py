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
        (TEXTS, TEXT.replace("--output logits", ""), "name the one that stand-ins imitate"),
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


def test_too_few_queries_are_refused_before_the_search(
    parm_here: Here, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("protect", *PLAIN.format(models=models).split(), "--out", "bundle")
    refused = parm_here(*given, "--agreement", "0.95")
    assert_refused(refused, "0.95 takes at least 72 queries to calibrate with, and there are 40")
    assert "give 720 rows of --inputs" in refused.stderr
    assert "or --agreement 0.9" in refused.stderr
    assert not list(tmp_path.iterdir())
    done = parm_here(*given, "--minutes", "0.05")
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.parity or manifest.backup
    assert manifest.calibration, "its doubts are known, though no level is"


def test_after_a_search_that_found_nothing_good_enough(
    parm_here: Here, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("protect", *PLAIN.format(models=models).split(), "--out", "bundle")
    given += ("--model", str(models / "noise.onnx"), "--minutes", "0.02", "--agreement", "0.9")
    refused = parm_here(*given)
    assert_refused(refused, "no stand-in was shown to agree with the model in 0.9 of cases")
    assert not list(tmp_path.iterdir())
