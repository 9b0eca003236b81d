"""Golden queries are made from a bundle alone, and answered always alike by a right instance."""

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
    golden_queries,
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
    assert bundle.backup_paths
    paths = [bundle.deployed_path, *bundle.parity_paths, bundle.backup_paths[0]]
    names = ["deployed", "parity-0", "parity-1", "backup"]
    return {name: OnnxModel(path) for name, path in zip(names, paths, strict=True)}


def golden_of(
    bundle: Bundle, running: dict[str, OnnxModel], count: int = GOLDEN
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Golden queries of the models' only input, and their only outputs."""
    queries = bundle.manifest.deployed.signature.smallest.input
    found = golden(bundle.code(), queries, bundle.envelope(), running, count)
    return {role: (rows["input"], outputs["output"]) for role, (rows, outputs) in found.items()}


def rows_of(bundle: Bundle, count: int) -> NDArray[Any]:
    queries = bundle.manifest.deployed.signature.smallest.input
    return golden_rows(queries, bundle.envelope(), count)["input"]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_work_has_queries_and_what_its_model_says_of_them(bundle: Bundle, count: int) -> None:
    running = models(bundle)
    found = golden_of(bundle, running, count)
    assert found.keys() == running.keys()
    for role, (rows, outputs) in found.items():
        assert rows.shape == (count, 4)
        for row, output in zip(rows, outputs, strict=True):
            np.testing.assert_array_equal(output_of(running[role], row[None])[0], output)
    code = bundle.code()
    assert code is not None
    weights = np.array([[1, 1, 1], [0.5, 1, 1.5]])
    rows = rows_of(bundle, max(count, 3))
    for j in range(2):
        first = (weights[j][:, None] * rows[:3]).sum(axis=0)
        np.testing.assert_allclose(found[f"parity-{j}"][0][0], first, rtol=1e-5)


def test_only_works_whose_models_are_given_are_answered(bundle: Bundle) -> None:
    assert golden_of(bundle, {"deployed": OnnxModel(bundle.deployed_path)}).keys() == {"deployed"}


def test_golden_queries_are_the_same_each_time_and_differ_among_themselves(bundle: Bundle) -> None:
    one, other = (golden_of(open_bundle(bundle.path), models(bundle)) for _ in range(2))
    for role, (rows, _) in one.items():
        np.testing.assert_array_equal(rows, other[role][0])
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_queries_to_which_a_model_gives_no_numbers_are_left_out(
    bundle: Bundle, tmp_path: Path
) -> None:
    linear_model(tmp_path / "model.onnx", (4,), (3,), np.full((4, 3), np.inf, np.float32))
    assert golden_of(bundle, {"deployed": OnnxModel(tmp_path / "model.onnx")}) == {}


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


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT8", "INT64", "BOOL"])
def test_without_an_envelope_golden_queries_are_small_numbers(
    datatype: str, tmp_path: Path
) -> None:
    spec = TensorSpec("input", datatype, (5, 6))
    rows = golden_rows(Layout((spec,)), None, 8)["input"]
    assert (rows.shape, rows.dtype) == ((8, 5, 6), spec.dtype)
    assert np.abs(rows.astype(np.float64)).max() < 200
    assert len(np.unique(rows, axis=0)) > 4


def test_golden_ids_are_drawn_from_their_range(tmp_path: Path) -> None:
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
    saturated = linear_model(bundle.path.parent / "other.onnx", (4,), (3,), np.ones((4, 3), "f"))
    assert saturated is not None
    other = OnnxModel(bundle.path.parent / "other.onnx")
    for role in ("backup", "parity-1"):
        with pytest.raises(BundleError, match=f"the {role} model gave another 'output'"):
            check_golden(stored, {**running, role: other})
    check_golden(stored, {"deployed": other})  # stand-ins alone are stored


def test_a_bundle_whose_stored_outputs_are_others_does_not_open(
    bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    found = golden(None, bundle.manifest.deployed.signature.smallest.input, None, models(bundle), 2)
    rows, outputs = found["backup"]
    content = encode_golden({"backup": (rows, {"output": 1.1 * outputs["output"]})})
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


# Of a model alone


def alone(model: OnnxModel, count: int = GOLDEN) -> tuple[NDArray[Any], NDArray[Any]]:
    found = golden_queries(model, count)
    assert found is not None
    return found[0]["input"], found[1]["output"]


@pytest.mark.parametrize("count", [1, 3, GOLDEN])
def test_the_outputs_are_the_model_s(tmp_path: Path, count: int) -> None:
    linear_model(tmp_path / "m.onnx", (3, 4), (5,))
    model = OnnxModel(tmp_path / "m.onnx")
    rows, outputs = alone(model, count)
    assert rows.shape == (count, 3, 4)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(outputs, output_of(model, rows), rtol=1e-6)
    np.testing.assert_array_equal(rows, alone(model, count)[0])


def test_other_weights_give_other_outputs(tmp_path: Path) -> None:
    weights = linear_model(tmp_path / "a.onnx", (12,), (5,))
    weights[7, 3] *= -2
    linear_model(tmp_path / "b.onnx", (12,), (5,), weights)
    (_, a), (_, b) = (alone(OnnxModel(tmp_path / f"{name}.onnx")) for name in "ab")
    assert (np.abs(a - b).max(axis=1) > 1e-3 * np.abs(a).max()).sum() >= GOLDEN // 2


def test_rows_that_the_model_cannot_run_are_left_out(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")  # its first value is an index, which must be a whole number
    np.testing.assert_array_equal(*alone(OnnxModel(tmp_path / "m.onnx")))


def test_a_model_that_gives_no_finite_output_has_none(tmp_path: Path) -> None:
    linear_model(tmp_path / "m.onnx", (2,), (2,), np.full((2, 2), np.inf, np.float32))
    assert golden_queries(OnnxModel(tmp_path / "m.onnx")) is None
