"""An ONNX file or torch module becomes a bundle as it is, is made batchable, or is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from commands import Here, assert_refused, succeeded
from onnx_models import Described, graph_model, linear_model, output_of
from parity_models.bundle.bundle import open_bundle, write_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.bundle.servable import read_servable, with_mean
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, ModelError, UserError
from parity_models.tensors.signature import Axis, Signature, Tensor
from present import some
from text_models import BUCKETS, expected, texts, write_text_bundle
from trainings import ONCE, train_parity

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IDENTITY = helper.make_node("Identity", ["x"], ["y"])
LESS_THE_SUM = [
    helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
    helper.make_node("Sub", ["x", "sum"], ["y"]),
]
STACK = CodeSpec("stack", "separate", 2)
ROWS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)


def graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Described],
    outputs: dict[str, Described],
    opsets: dict[str, int] | None = None,
    **constants: object,
) -> Path:
    path.write_bytes(graph_model(nodes, inputs, outputs, constants, opsets))
    return path


# A transformer: records, dynamic axes


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_bundle(tmp_path_factory.mktemp("text"), backed=True)


@pytest.mark.slow
def test_dynamic_axes_are_found_and_each_bucket_is_predicted(text_bundle: Path) -> None:
    bundle = open_bundle(text_bundle)
    deployed = bundle.manifest.deployed
    assert deployed.signature == Signature(
        (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",))),
        (Tensor("logits", "FP32", (3,)), Tensor("hidden", "FP32", ("length", 8))),
        {"length": BUCKETS},
    )
    model = bundle.pinned(deployed).load()
    for size in BUCKETS.buckets:
        queries = texts(5, size)
        outputs = model(queries)
        for name, values in expected(queries).items():
            np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_file_of_queries_or_a_bound_gives_buckets(text_bundle: Path) -> None:
    model = text_bundle.parent / "text.onnx"
    _, signature = read_servable(model, {"length": 100})
    assert signature.axes == {"length": Axis((25, 50, 100))}
    _, signature = read_servable(model, queries=dict(texts(40, 12)))
    assert signature.axes["length"].bound == 12


@pytest.mark.slow
def test_parm_bundle_reports_the_bundle(parm_here: Here, tmp_path: Path, text_bundle: Path) -> None:
    models = text_bundle.parent
    made = succeeded(parm_here(
        "bundle", models / "text.onnx", "--axis", "length=4,8,16", "--backup",
        models / "bag.onnx", "--output", "logits", "--out", tmp_path / "bundle",
    ))  # fmt: skip
    assert "axis 'length' is padded to 4, 8, 16" in made.stdout
    assert open_bundle(tmp_path / "bundle").manifest.backup


@pytest.mark.slow
def test_a_backup_of_another_output_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(text_bundle)
    manifest = bundle.manifest
    deployed, backup = bundle.stored(manifest.deployed), bundle.stored(some(manifest.backup))
    with pytest.raises(BundleError, match="has no fixed shape"):
        write_bundle(tmp_path / "b", deployed=deployed, backup=backup, imitated="hidden")
    made = write_bundle(tmp_path / "b", deployed=deployed, backup=backup)
    assert made.manifest.imitated == "logits"


# Images, and outputs for each token


@pytest.mark.parametrize("free", [["n", 3, "?", "?"], ["n", 3, None, None], ["n", 3, "h", "w"]])
def test_free_axes_of_images_have_the_size_of_the_queries(tmp_path: Path, free: list[str]) -> None:
    pool = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["y"])
    path = graph(tmp_path / "m.onnx", [pool, flat], {"x": (FLOAT, free)}, {"y": (FLOAT, ["m", 3])})
    images = np.random.default_rng(0).normal(size=(9, 3, 4, 12)).astype(np.float32)
    content, signature = read_servable(path, queries={"x": images})
    assert signature.inputs[0].shape == (3, 4, 12)
    found = output_of(OnnxModel(content, signature=signature), images)
    np.testing.assert_allclose(found, images.mean(axis=(2, 3)), atol=1e-6)
    if free[2] == "h":
        _, signature = read_servable(path, {"h": 4, "w": 12})
        assert signature.axes.keys() == {"h", "w"}


@pytest.mark.parametrize("masked", [True, False])
def test_the_mean_over_tokens_becomes_an_output(tmp_path: Path, masked: bool) -> None:
    table = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    tokens: Described = (INT64, ["n", "length"])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["hidden"])]
    inputs = {"ids": tokens}
    if masked:
        inputs["attention_mask"] = tokens
        nodes.append(helper.make_node("Identity", ["attention_mask"], ["copy"]))
    hidden: dict[str, Described] = {"hidden": (FLOAT, ["n", "length", 4])}
    path = graph(tmp_path / "m.onnx", nodes, inputs, hidden, table=table)
    rows = np.array([[3, 4, 5, 0], [7, 8, 0, 0]])
    queries = {"ids": rows} | ({"attention_mask": (rows > 0).astype(np.int64)} if masked else {})
    content, signature, name = with_mean(*read_servable(path, queries=queries))
    found = OnnxModel(content, signature=signature)(queries)
    means = np.stack([table[[3, 4, 5]].mean(axis=0), table[[7, 8]].mean(axis=0)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found[name], expected, atol=1e-6)
    with pytest.raises(ModelError, match=r"the model gives 'hidden' .*leave out pool="):
        with_mean(content, signature, "nothing")


# Batch axes


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_axis_is_filled_up(tmp_path: Path, size: int) -> None:
    fixed: Described = (FLOAT, [size, 6])
    path = graph(tmp_path / "m.onnx", [IDENTITY], {"x": fixed}, {"y": fixed})
    content, signature = read_servable(path)
    model = OnnxModel(content, signature=signature)
    for rows in (1, size, size + 1):
        np.testing.assert_array_equal(output_of(model, ROWS[:rows]), ROWS[:rows])


# Weights in other files


def test_weights_next_to_a_model_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    weights = linear_model(path, (6,), (3,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    content, signature = read_servable(path)
    found = output_of(OnnxModel(content, signature=signature), ROWS)
    np.testing.assert_allclose(found, ROWS @ weights, rtol=1e-4)
    (path.parent / "w").rename(tmp_path / "w")
    with pytest.raises(ModelError, match=r"the weights of .*model\.onnx are in another file"):
        read_servable(path)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../w" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="in another file that cannot be read"):
        read_servable(path)


# What cannot be served or imitated


def test_models_that_cannot_be_served_are_refused_in_a_sentence(
    parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    half = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])
    add = helper.make_node("Add", ["x", "z"], ["y"])
    place = helper.make_node("Add", ["x", "places"], ["y"])
    free, row, one, four = ((FLOAT, each) for each in (["n", "m"], ["n", 3], [1, 3], [4, 3]))
    pooled, halved = (FLOAT, ["n", 2, "m"]), (FLOAT, ["n", 2, "half"])

    def model(node: onnx.NodeProto, x: Described, y: Described, **constants: object) -> bytes:
        return graph_model([node], {"x": x}, {"y": y}, constants)

    def less_the_sum(shape: Described) -> bytes:
        return graph_model(LESS_THE_SUM, {"x": shape}, {"y": shape}, {"axes": [0]})

    dynamic = model(IDENTITY, free, free)
    mixed = graph_model([add], {"x": one, "z": row}, {"y": row})
    placed = model(place, free, free, places=np.zeros(4, "f"))
    cases = [
        (dynamic, "", "has an axis 'm' of no fixed size"),
        (dynamic, "--axis m=8 --output q", "the model has no output 'q'; it has "),
        (dynamic, "--axis m=8,a", "ascending, not 'm=8,a' (sizes are whole"),
        (dynamic, "--axis m=99999999999", "it has tensors that cannot be served: a"),
        (dynamic, "--axis m=8 --axis q=8", "has no dynamic axis 'q'"),
        (dynamic, "--axis m=8 --padding q=1", "has no input 'q' to be padded"),
        (dynamic, "--inputs rows.npy", "rows of shape [2, 2]"),
        (less_the_sum(row), "", "depends on the other rows of the batch"),
        (less_the_sum(four), "", "depends on the other rows of the batch"),
        (mixed, "", "the first axis of every input must be the batch axis"),
        (model(half, pooled, halved), "--axis m=8", "only an axis as large as an input's can be"),
        (placed, "--axis m=8", "by a dimension other than 1. 4 by 8; if the model takes no rows"),
    ]
    np.save("rows.npy", np.zeros((4, 2, 2), np.float32))
    for content, arguments, reason in cases:
        Path("m.onnx").write_bytes(content)
        refused = parm_here("bundle", "m.onnx", "--out", "bundle", *arguments.split())
        assert_refused(refused, reason)
        assert "onnxruntime" not in refused.stderr, "a place in the source of ONNX Runtime"
    assert not Path("bundle").exists()


def test_models_that_cannot_be_imitated_are_refused_in_a_sentence(
    parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, row, whole = Path("m.onnx"), (FLOAT, ["n", 6]), (INT64, ["n", 6])
    add = helper.make_node("Add", ["x", "z"], ["y"])
    two = helper.make_node("Identity", ["x"], ["z"])
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    np.save("rows.npy", ROWS)
    one: tuple[dict[str, Described], dict[str, Described]] = {"x": row}, {"y": row}
    makers: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "cannot read m.onnx: No such file"),
        (lambda: path.write_bytes(b"noise" * 9), "is not an ONNX file"),
        (lambda: graph(path, [add], {"x": row, "z": row}, {"y": row}), "an .npz file with"),
        (lambda: graph(path, [IDENTITY, two], {"x": row}, {"y": row, "z": row}), "with --output"),
        (lambda: graph(path, [cast], {"x": whole}, {"y": row}), "the model takes 'x' INT64"),
        (lambda: graph(path, [IDENTITY], *one, {"": 999}), "needs a newer opset of ai.onnx than"),
    ]
    for make, reason in makers:
        make()
        refused = parm_here("parity", "--model", path, "--inputs", "rows.npy", "--out", "bundle")
        assert_refused(refused, reason)
    assert not Path("bundle").exists()


@pytest.mark.slow
def test_modules_that_cannot_be_deployed_are_refused(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.long()

    for module, reason in [
        (nn.Linear(5, 2), "cannot be exported to ONNX for queries of shape"),
        (Whole(), "cannot be imitated"),
    ]:
        with pytest.raises(UserError, match=reason):
            train_parity(module, STACK, ROWS, tmp_path / "bundle", ONCE)
