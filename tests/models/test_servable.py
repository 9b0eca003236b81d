"""Any ONNX model becomes a bundle: its signature is complete, or what is missing is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from commands import Here, assert_refused
from onnx_models import output_of
from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.servable import read_servable
from parity_models.models.signature import Axis, Signature, Tensor
from text_models import BUCKETS, expected, texts, write_text_bundle

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IDENTITY = helper.make_node("Identity", ["x"], ["y"])
Described = tuple[int, list[Any]]


def graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Described],
    outputs: dict[str, Described],
    **constants: object,
) -> Path:
    made = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in each.items()]
        for each in (inputs, outputs)
    ]
    weights = [numpy_helper.from_array(np.array(each), name) for name, each in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", made[0], made[1], weights),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_bundle(tmp_path_factory.mktemp("text"), backed=True)


@pytest.mark.slow
def test_a_transformer_has_its_axes_found_in_inputs_and_outputs(text_bundle: Path) -> None:
    manifest = open_bundle(text_bundle).manifest
    assert manifest.deployed.signature == Signature(
        (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",))),
        (Tensor("logits", "FP32", (3,)), Tensor("hidden", "FP32", ("length", 8))),
        {"length": BUCKETS},
    )
    assert manifest.imitated == "logits"


def test_it_predicts_records_of_each_bucket(text_bundle: Path) -> None:
    bundle = open_bundle(text_bundle)
    model = bundle.pinned(bundle.manifest.deployed).load()
    for size in BUCKETS.buckets:
        queries = texts(5, size)
        outputs = model(queries)
        for name, values in expected(queries).items():
            np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)


def test_a_file_of_queries_or_a_bound_gives_buckets(text_bundle: Path) -> None:
    model = text_bundle.parent / "text.onnx"
    _, signature = read_servable(model, {"length": 100})
    assert signature.axes == {"length": Axis((25, 50, 100))}
    _, signature = read_servable(model, queries=dict(texts(40, 12)))
    assert signature.axes["length"].bound == 12


def test_what_is_fixed_to_one_row_is_freed_or_run_alone(tmp_path: Path) -> None:
    one: Described = (FLOAT, [1, 3])
    path = graph(tmp_path / "a.onnx", [IDENTITY], {"x": one}, {"y": one})
    assert read_servable(path)[1].batch == 0
    total = helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1)
    less = helper.make_node("Sub", ["x", "sum"], ["y"])
    path = graph(tmp_path / "b.onnx", [total, less], {"x": one}, {"y": one}, axes=[0])
    content, signature = read_servable(path)
    assert signature.batch == 1
    model = OnnxModel(content, signature=signature)
    assert (output_of(model, np.ones((5, 3), np.float32)) == 0).all()
    fixed = NewModel(content, "own", signature=signature)
    write_bundle(tmp_path / "bundle", deployed=fixed)
    assert open_bundle(tmp_path / "bundle").manifest.deployed.signature.batch == 1
    with pytest.raises(BundleError, match="served exact; leave the stand-ins out"):
        write_bundle(tmp_path / "other", deployed=fixed, backups=[fixed])
    assert not (tmp_path / "other").exists()


def test_a_fixed_batch_of_several_is_filled_up(tmp_path: Path) -> None:
    four: Described = (FLOAT, [4, 3])
    content, signature = read_servable(
        graph(tmp_path / "a.onnx", [IDENTITY], {"x": four}, {"y": four})
    )
    rows = np.arange(27, dtype=np.float32).reshape(9, 3)
    assert (output_of(OnnxModel(content, signature=signature), rows) == rows).all()


def test_models_that_cannot_be_served_are_refused_in_a_sentence(
    parm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, free, row = Path("m.onnx"), (FLOAT, ["n", "m"]), (FLOAT, ["n", 3])
    total = helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1)
    less = helper.make_node("Sub", ["x", "sum"], ["y"])
    half = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])
    add = helper.make_node("Add", ["x", "z"], ["y"])
    text = (TensorProto.STRING, ["n", 3])
    cases: list[tuple[Callable[[], object], list[str], str]] = [
        (
            lambda: graph(path, [IDENTITY], {"x": free}, {"y": free}),
            [],
            "has an axis 'm' of no fixed size",
        ),
        (lambda: None, ["--axis", "m=8,4"], "ascending, not 'm=8,4'"),
        (
            lambda: None,
            ["--axis", "m=8,a"],
            "ascending, not 'm=8,a' (sizes are whole",
        ),
        (lambda: None, ["--axis", "m=0"], "whole numbers of 1 or more"),
        (lambda: None, ["--axis", "m=99999999999"], "cannot be served with axes of that size: a"),
        (lambda: None, ["--axis", "m=8", "--axis", "q=8"], "has no dynamic axis 'q'"),
        (lambda: None, ["--axis", "m=8", "--padding", "q=1"], "has no input 'q' to be padded"),
        (lambda: None, ["--inputs", "none.npz"], "there is no none.npz"),
        (lambda: None, ["--inputs", "rows.npy"], "rows of shape [2, 2]"),
        (
            lambda: graph(path, [total, less], {"x": row}, {"y": row}, axes=[0]),
            [],
            "depends on the other rows of the batch",
        ),
        (
            lambda: graph(path, [IDENTITY], {"x": text}, {"y": text}),
            [],
            "of strings, which have no fixed number of bytes",
        ),
        (
            lambda: graph(path, [add], {"x": (FLOAT, [1, 3]), "z": row}, {"y": row}),
            [],
            "the first axis of every input must be the batch axis",
        ),
        (
            lambda: graph(
                path,
                [half],
                {"x": (FLOAT, ["n", 2, "m"])},
                {"y": (FLOAT, ["n", 2, "half"])},
            ),
            ["--axis", "m=8"],
            "only an axis as large as an input's can be cut back",
        ),
    ]
    np.save("rows.npy", np.zeros((4, 2, 2), np.float32))
    for make, arguments, reason in cases:
        make()
        assert_refused(parm_here("bundle", path, "--out", "bundle", *arguments), reason)
    assert not Path("bundle").exists()


def test_an_axis_longer_than_the_model_takes_is_said_with_the_way_out(
    parm_here: Here, tmp_path: Path
) -> None:
    free = (FLOAT, ["n", "m"])
    place = helper.make_node("Add", ["x", "places"], ["y"])
    zeros = np.zeros(4, np.float32)
    path = graph(tmp_path / "m.onnx", [place], {"x": free}, {"y": free}, places=zeros)
    refused = parm_here("bundle", path, "--axis", "m=8", "--out", tmp_path / "bundle")
    why = "Attempting to broadcast an axis by a dimension other than 1. 4 by 8"
    what_to_do = "if that is longer than it takes, give a smaller bound, --axis m=SIZE"
    assert_refused(refused, f"{why}; {what_to_do}")
    assert "onnxruntime" not in refused.stderr, "a place in the source of ONNX Runtime"
    assert not (tmp_path / "bundle").exists()


def test_parm_bundle_says_what_it_made(parm_here: Here, tmp_path: Path, text_bundle: Path) -> None:
    models = text_bundle.parent
    made = parm_here(
        "bundle", models / "text.onnx", "--axis", "length=4,8,16", "--backup",
        models / "bag.onnx", "--output", "logits", "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "axis 'length' is padded to 4, 8, 16" in made.stdout
    assert open_bundle(tmp_path / "bundle").manifest.backups


def test_its_backup_is_evaluated_and_calibrated_on_queries_of_several_inputs(
    parm_here: Here, tmp_path: Path, text_bundle: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(text_bundle, bundle)
    queries = texts(400, 12)
    held_out, labels = tmp_path / "queries.npz", tmp_path / "labels.npy"
    np.savez(held_out, ids=queries["ids"], mask=queries["mask"])
    np.save(labels, expected(queries)["logits"].argmax(axis=1))
    done = parm_here("evaluate", bundle, "--inputs", held_out, "--labels", labels)
    assert done.returncode == 0, done.stderr
    accuracy = open_bundle(bundle).manifest.accuracy
    assert accuracy is not None
    assert accuracy.available_accuracy == 1
    assert 0.5 < (accuracy.backup_accuracies[0] or 0) < 1
    done = parm_here("calibrate", bundle, "--inputs", held_out, "--agreement", "0.8")
    assert done.returncode == 0, done.stderr
    calibration = open_bundle(bundle).manifest.calibration["backup"]
    assert (calibration.kind, calibration.queries) == ("classes", 400)


def test_a_backup_of_another_output_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(text_bundle)
    manifest = bundle.manifest
    assert manifest.backups
    deployed, backup = bundle.stored(manifest.deployed), bundle.stored(manifest.backups[0])
    with pytest.raises(BundleError, match="does not name the output that its backup imitates"):
        write_bundle(tmp_path / "b", deployed=deployed, backups=[backup])
    with pytest.raises(BundleError, match="has no fixed shape"):
        write_bundle(tmp_path / "b", deployed=deployed, backups=[backup], imitated="hidden")
    with pytest.raises(ModelError, match="where this works with one input of fixed shape"):
        _ = bundle.manifest.deployed.signature.input
