"""Golden queries are made from a bundle alone, and a right model always answers them alike."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_models import linear_model, moody_model, output_of
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.export import floats
from parity_models.models.golden import (
    GOLDEN,
    check_golden,
    encode_golden,
    golden,
    golden_rows,
)
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Layout, Tensor, TensorSpec
from parity_models.training.envelope import fit_envelope
from whole_bundle import tamper

RNG = np.random.default_rng(0)
INPUTS = (RNG.normal(size=(500, 4)) * [1, 10, 100, 0] + [0, 0, 500, 7]).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("golden")
    linear_model(folder / "deployed.onnx", (4,), (3,))
    linear_model(folder / "parity.onnx", (4,), (3,), RNG.normal(size=(4, 3)).astype(np.float32))
    parity = NewModel(folder / "parity.onnx", "linear")
    return write_bundle(
        folder / "bundle",
        deployed=NewModel(folder / "deployed.onnx", "linear"),
        parity=[parity, parity],
        backups=[NewModel(folder / "deployed.onnx", "linear")],
        code=CodeSpec("sum", "subtraction", 3, 2),
        envelope=fit_envelope([floats((4,))], {"input": INPUTS}, {"input": INPUTS}, INPUTS[:, :3]),
    )


def models(bundle: Bundle) -> dict[str, OnnxModel]:
    paths = [bundle.deployed_path, *bundle.parity_paths, *bundle.backup_paths]
    names = ["deployed", "parity-0", "parity-1", "backup"]
    return {name: OnnxModel(path) for name, path in zip(names, paths, strict=True)}


def golden_of(
    bundle: Bundle, running: dict[str, OnnxModel], count: int = GOLDEN
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return golden queries of the models' only input, and their only outputs."""
    queries = bundle.manifest.deployed.signature.smallest.input
    found = golden(bundle.code(), queries, bundle.envelope(), running, count)
    return {role: (rows["input"], outputs["output"]) for role, (rows, outputs) in found.items()}


def rows_of(bundle: Bundle, count: int) -> NDArray[Any]:
    queries = bundle.manifest.deployed.signature.smallest.input
    return golden_rows(queries, bundle.envelope(), count)["input"]


@pytest.mark.parametrize("count", [1, 8])
def test_each_role_has_queries_and_the_outputs_of_its_model(bundle: Bundle, count: int) -> None:
    running = models(bundle)
    found, again = golden_of(bundle, running, count), golden_of(bundle, running, count)
    assert found.keys() == running.keys()
    for role, (rows, outputs) in found.items():
        assert rows.shape == (count, 4)
        assert len(np.unique(rows, axis=0)) == len(rows)
        np.testing.assert_array_equal(rows, again[role][0])
        for row, output in zip(rows, outputs, strict=True):
            np.testing.assert_array_equal(output_of(running[role], row[None])[0], output)
    weights = np.array([[1, 1, 1], [0.5, 1, 1.5]])
    rows = rows_of(bundle, max(count, 3))
    for j in range(2):
        first = (weights[j][:, None] * rows[:3]).sum(axis=0)
        np.testing.assert_allclose(found[f"parity-{j}"][0][0], first, rtol=1e-5)
    assert golden_of(bundle, {"deployed": running["deployed"]}).keys() == {"deployed"}


def test_queries_that_a_model_cannot_answer_are_left_out(bundle: Bundle, tmp_path: Path) -> None:
    linear_model(tmp_path / "model.onnx", (4,), (3,), np.full((4, 3), np.inf, np.float32))
    assert golden_of(bundle, {"deployed": OnnxModel(tmp_path / "model.onnx")}) == {}
    moody_model(tmp_path / "m.onnx")  # its first value is an index, which must be a whole number
    model = OnnxModel(tmp_path / "m.onnx")
    found = golden(None, model.signature.smallest.input, None, {"deployed": model})
    np.testing.assert_array_equal(found["deployed"][0]["input"], found["deployed"][1]["output"])


def test_a_flipped_exponent_bit_is_seen(bundle: Bundle) -> None:
    weights = RNG.normal(size=(4, 3)).astype(np.float32)
    rows = rows_of(bundle, 8)
    right = rows @ weights
    for bit in range(23, 30):
        wrong = weights.copy()
        wrong[2:3, 1].view(np.uint32)[...] ^= np.uint32(1 << bit)
        off = np.abs(rows @ wrong - right).max(axis=1) / np.abs(right).max(axis=1)
        assert (off > 1e-5).any()


def test_golden_queries_are_of_the_units_of_the_inputs(bundle: Bundle) -> None:
    rows = rows_of(bundle, 100)
    np.testing.assert_allclose(rows.mean(axis=0), [0, 0, 500, 7], atol=100)
    assert (rows.std(axis=0)[:3] > [1, 10, 100]).all()
    assert (rows.std(axis=0)[:3] < [4, 40, 400]).all()


@pytest.mark.parametrize("datatype", ["FP16", "FP64", "INT8", "UINT8", "INT64", "BOOL"])
def test_without_an_envelope_golden_queries_are_small_numbers(datatype: str) -> None:
    spec = TensorSpec("input", datatype, (5, 6))
    rows = golden_rows(Layout((spec,)), None, 8)["input"]
    assert (rows.shape, rows.dtype) == ((8, 5, 6), spec.dtype)
    assert np.abs(rows.astype(np.float64)).max() < 200
    assert len(np.unique(rows, axis=0)) > 4


def test_golden_ids_are_drawn_from_their_range() -> None:
    ids = np.random.default_rng(0).integers(3, 40, (200, 6))
    inputs = (Tensor("ids", "INT64", (6,)),)
    envelope = fit_envelope(inputs, {"ids": ids}, {"ids": ids}, INPUTS[:200, :3])
    rows = golden_rows(Layout((TensorSpec("ids", "INT64", (6,)),)), envelope, 8)["ids"]
    assert rows.dtype == np.int64
    assert 3 <= rows.min() < 10 < 30 < rows.max() < 40


# Stored in a bundle


def test_a_bundle_is_refused_where_its_stand_ins_answer_otherwise(bundle: Bundle) -> None:
    stored = (bundle.path / "golden.msgpack").read_bytes()
    running = models(bundle)
    check_golden(stored, running)
    linear_model(bundle.path.parent / "other.onnx", (4,), (3,), np.ones((4, 3), np.float32))
    other = OnnxModel(bundle.path.parent / "other.onnx")
    for role in ("backup", "parity-1"):
        with pytest.raises(BundleError, match=f"the {role} model gave another 'output'"):
            check_golden(stored, {**running, role: other})
    check_golden(stored, {"deployed": other})  # stand-ins alone are stored


def test_a_bundle_whose_stored_outputs_are_others_does_not_open(
    bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    rows, outputs = golden_of(bundle, models(bundle), 2)["backup"]
    content = encode_golden({"backup": ({"input": rows}, {"output": 1.1 * outputs})})
    (copy / "golden.msgpack").write_bytes(content)

    def change(manifest: dict[str, Any]) -> None:
        (stored,) = manifest["files"]
        stored |= {"sha256": sha256(content).hexdigest(), "size": len(content)}

    tamper(copy, change)
    with pytest.raises(BundleError, match=r"golden\.msgpack shows .* make the stand-in again"):
        open_bundle(copy)


@pytest.mark.parametrize("content", [b"", b"words", encode_golden({})[:-1] + b"\xff"])
def test_bytes_that_hold_no_golden_queries_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="holds no golden queries"):
        check_golden(content, {})
