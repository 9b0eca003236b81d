"""An ONNX file or torch module to be deployed is taken as it is, made batchable, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from commands import Here, assert_refused
from onnx_models import linear_model, output_of
from parity_models.codes import CodeSpec
from parity_models.errors import ModelError, UserError
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.servable import read_servable
from trainings import ONCE, train_parity

STACK = CodeSpec("stack", "separate", 2)
ROWS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IDENTITY = helper.make_node("Identity", ["input"], ["output"])


def model(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]] | None = None,
    opsets: dict[str, int] | None = None,
    **tensors: tuple[int, list[Any]],
) -> Path:
    """Write a model whose tensors are called "input…" and "output…"."""
    values = {
        role: [
            helper.make_tensor_value_info(name, *spec)
            for name, spec in tensors.items()
            if name.startswith(role)
        ]
        for role in ("input", "output")
    }
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", values["input"], values["output"], weights)
    imports = [helper.make_opsetid(*one) for one in {"": 18, **(opsets or {})}.items()]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=imports), path)
    return path


def test_weights_beside_a_model_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = linear_model(path, (6,), (3,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    assert (tmp_path / "w").exists()
    content, signature = read_servable(path)
    found = output_of(OnnxModel(content, signature=signature), ROWS)
    np.testing.assert_allclose(found, ROWS @ weights, rtol=1e-4)
    (tmp_path / "w").unlink()
    with pytest.raises(ModelError, match=r"the weights of .*model\.onnx are in another file"):
        read_servable(path)


def test_weights_outside_the_models_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    linear_model(path, (6,), (3,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    (path.parent / "w").rename(tmp_path / "w")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../w" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="in another file that cannot be read"):
        read_servable(path)


@pytest.mark.parametrize("shape", [[1, -1], [1, 6], [-1, 6]])
def test_a_batch_axis_fixed_to_one_is_freed(tmp_path: Path, shape: list[int]) -> None:
    path = model(
        tmp_path / "model.onnx",
        [helper.make_node("Reshape", ["input", "shape"], ["output"])],
        {"shape": np.array(shape, np.int64)},
        input=(FLOAT, [1, 2, 3]),
        output=(FLOAT, [1, 6]),
    )
    freed = OnnxModel(read_servable(path)[0])
    np.testing.assert_array_equal(output_of(freed, ROWS.reshape(-1, 2, 3)), ROWS)


def test_models_that_cannot_be_deployed_are_refused(
    parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row, free, whole = (FLOAT, ["n", 6]), (FLOAT, ["n", "m"]), (INT64, ["n", 6])
    path = tmp_path / "model.onnx"
    add = helper.make_node("Add", ["input", "input2"], ["output"])
    two = helper.make_node("Identity", ["input"], ["output2"])
    strange = helper.make_node("Strange", ["input"], ["output"], domain="nobody.knows")
    cast = helper.make_node("Cast", ["input"], ["output"], to=FLOAT)
    np.save("rows.npy", ROWS)
    makers: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "cannot read model.onnx: No such file"),
        (lambda: path.write_bytes(b"noise" * 9), "is not an ONNX file"),
        (lambda: path.write_bytes(b""), "model.onnx"),
        (lambda: model(path, [add], input=row, input2=row, output=row), "an .npz file with"),
        (
            lambda: model(path, [IDENTITY, two], input=row, output=row, output2=row),
            "--output NAME",
        ),
        (lambda: model(path, [IDENTITY], input=free, output=free), "of fixed shape"),
        (lambda: model(path, [cast], input=whole, output=row), "the model takes 'input' INT64"),
        (
            lambda: model(path, [IDENTITY], input=(FLOAT, [8, 6]), output=(FLOAT, [8, 6])),
            "8 rows at once and no other number",
        ),
        (
            lambda: model(path, [strange], opsets={"nobody.knows": 1}, input=row, output=row),
            "uses an operator that ONNX Runtime lacks",
        ),
        (
            lambda: model(path, [strange], input=row, output=row),
            "uses an operator that ONNX Runtime lacks",
        ),
        (
            lambda: model(path, [IDENTITY], opsets={"": 999}, input=row, output=row),
            "is of an opset of ai.onnx newer than",
        ),
    ]
    for make, reason in makers:
        make()
        refused = parm_here(
            "parity", "--model", path.name, "--inputs", "rows.npy", "--out", "bundle"
        )
        assert_refused(refused, reason)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_modules_that_cannot_be_deployed_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return rows + 1, rows - 1

    class Whole(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.long()

    for module, reason in [
        (nn.Linear(5, 2), "cannot be exported to ONNX for queries of shape"),
        (Two(), "--output NAME"),
        (Whole(), "cannot be imitated"),
    ]:
        with pytest.raises(UserError, match=reason):
            train_parity(module, STACK, ROWS, tmp_path / "bundle", ONCE)
