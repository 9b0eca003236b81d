"""Models that a bundle cannot hold are refused with the reason."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.onnx_model import OnnxModel

FLOAT = TensorProto.FLOAT


IDENTITY = helper.make_node("Identity", ["input"], ["output"])


def save(nodes: list[onnx.NodeProto], **tensors: tuple[int, list[Any]]) -> bytes:
    """A model of `nodes`; tensors are called "input…" and "output…"."""
    values = {
        role: [
            helper.make_tensor_value_info(name, *spec)
            for name, spec in tensors.items()
            if name.startswith(role)
        ]
        for role in ("input", "output")
    }
    graph = helper.make_graph(nodes, "g", values["input"], values["output"])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody.knows", 1)]
    content: bytes = helper.make_model(
        graph, ir_version=10, opset_imports=opsets
    ).SerializeToString()
    return content


def external(folder: Path) -> Path:
    """A model whose weights lie beside it in a file of their own."""
    linear_model(folder / "inner.onnx", (4,), (3,))
    model = onnx.load(folder / "inner.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((4, 3), np.float32), "weights"))
    path = folder / "outer.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_models_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    row, fixed, free = (FLOAT, ["n", 2]), (FLOAT, [1, 2]), (FLOAT, ["n", "m"])
    text, huge = (TensorProto.STRING, ["n", 2]), (FLOAT, ["n", 2**40])
    strange = helper.make_node("Strange", ["input"], ["output"], domain="nobody.knows")
    rows_of_its_own = [
        helper.make_node("NonZero", ["input"], ["where"]),
        helper.make_node("Cast", ["where"], ["columns"], to=FLOAT),
        helper.make_node("Transpose", ["columns"], ["output"]),
    ]
    cases: list[tuple[Path | bytes, str]] = [
        (b"", "cannot be loaded by ONNX Runtime"),
        (b"noise" * 100, "cannot be loaded by ONNX Runtime"),
        (tmp_path / "absent.onnx", "absent.onnx is missing"),
        (external(tmp_path), "keeps its weights in another file"),
        (save([IDENTITY], input=fixed, output=fixed), "without a free batch axis"),
        (save([IDENTITY], input=free, output=free), "only the batch axis may be free"),
        (
            save([IDENTITY], input=text, output=text),
            "of strings, which have no fixed number of bytes",
        ),
        (save([IDENTITY], input=huge, output=huge), "is too large"),
        (save([strange], input=row, output=row), "uses an operator that ONNX Runtime lacks"),
        (
            save(rows_of_its_own, input=row, output=row),
            r"gives 'output' of shape \(0, 2\) where it declares",
        ),
    ]
    for model, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(tmp_path / "bundle", deployed=NewModel(model, "any"))
        assert not (tmp_path / "bundle").exists()


def test_weights_outside_the_model_file_are_never_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert (tmp_path / "weights.bin").is_file()
    for model in (path, path.read_bytes()):
        with pytest.raises(ModelError, match="keeps its weights in another file"):
            OnnxModel(model)


def test_a_code_that_cannot_encode_the_model_s_datatype_is_refused(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT)
    content = save(
        [cast], input=(TensorProto.INT64, ["n", 4]), output=(TensorProto.FLOAT, ["n", 4])
    )
    model = NewModel(content, "cast")
    with pytest.raises(BundleError, match="needs floating point, got int64"):
        write_bundle(
            tmp_path / "bundle",
            deployed=model,
            parity=[model],
            code=CodeSpec("sum", "subtraction", 2),
        )
