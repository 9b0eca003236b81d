"""Golden queries are made from a bundle alone, and a right model always answers them alike."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_models import linear_model, moody_model, output_of
from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError
from parity_models.tensors.signature import Layout, Tensor, TensorSpec
from parity_models.training.export import floats
from parity_models.trust.envelope import fit_envelope
from parity_models.trust.golden import GOLDEN, check_golden, encode_golden, golden, golden_rows
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
        backup=NewModel(folder / "deployed.onnx", "linear"),
        code=CodeSpec("sum", "subtraction", 3, 2),
        envelope=fit_envelope([floats((4,))], {"input": INPUTS}, {"input": INPUTS}, INPUTS[:, :3]),
    )


def models(bundle: Bundle) -> dict[str, OnnxModel]:
    paths = [bundle.path / each.file for each in bundle.manifest.models.values()]
    names = ["deployed", "parity-0", "parity-1", "backup"]
    return {name: OnnxModel(path) for name, path in zip(names, paths, strict=True)}


def golden_of(
    bundle: Bundle, running: dict[str, OnnxModel], count: int = GOLDEN
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return golden queries of the models' only input, and their only outputs."""
    queries = bundle.manifest.deployed.signature.smallest.input
    found = golden(bundle.code(), queries, bundle.envelope(), running, count)
    return {role: (rows["input"], outputs["output"]) for role, (rows, outputs) in found.items()}


def test_each_role_has_queries_and_the_outputs_of_its_model(bundle: Bundle) -> None:
    running = models(bundle)
    found, again = golden_of(bundle, running), golden_of(bundle, running)
    assert found.keys() == running.keys()
    for role, (rows, outputs) in found.items():
        assert rows.shape == (GOLDEN, 4)
        assert len(np.unique(rows, axis=0)) == len(rows)
        np.testing.assert_array_equal(rows, again[role][0])
        for row, output in zip(rows, outputs, strict=True):
            np.testing.assert_array_equal(output_of(running[role], row[None])[0], output)
    queries = bundle.manifest.deployed.signature.smallest.input
    rows = golden_rows(queries, bundle.envelope(), GOLDEN)["input"]
    for j, weights in enumerate(([1, 1, 1], [0.5, 1, 1.5])):
        np.testing.assert_allclose(found[f"parity-{j}"][0][0], weights @ rows[:3], rtol=1e-5)


def test_queries_that_a_model_cannot_answer_are_left_out(bundle: Bundle, tmp_path: Path) -> None:
    linear_model(tmp_path / "model.onnx", (4,), (3,), np.full((4, 3), np.inf, np.float32))
    assert golden_of(bundle, {"deployed": OnnxModel(tmp_path / "model.onnx")}) == {}
    moody_model(tmp_path / "m.onnx")  # its first value is an index, which must be a whole number
    model = OnnxModel(tmp_path / "m.onnx")
    found = golden(None, model.signature.smallest.input, None, {"deployed": model})
    np.testing.assert_array_equal(found["deployed"][0]["input"], found["deployed"][1]["output"])


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
    assert 3 <= rows.min() < 10 < 30 < rows.max() < 40


# Stored in a bundle


def test_a_bundle_whose_stand_ins_differ_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    linear_model(copy / "backup.onnx", (4,), (3,), np.ones((4, 3), np.float32))
    check_golden((copy / "golden.msgpack").read_bytes(), models(bundle))
    other = (copy / "backup.onnx").read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        manifest["backup"] |= {"sha256": sha256(other).hexdigest(), "size": len(other)}

    tamper(copy, change)
    with pytest.raises(BundleError, match=r"backup model's 'output' is not the one .* make the"):
        open_bundle(copy)


@pytest.mark.parametrize("content", [b"", b"words", encode_golden({})[:-1] + b"\xff"])
def test_bytes_that_hold_no_golden_queries_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="holds no golden queries"):
        check_golden(content, {})


def test_a_model_whose_outputs_depend_on_the_batch_is_recognised(bundle: Bundle) -> None:
    """A dynamically quantised model has one scale for all rows of a batch."""

    class Dynamic:
        def __init__(self, model: OnnxModel) -> None:
            self._model, self.signature = model, model.signature

        def __call__(self, batch: Any) -> Any:
            rows = len(next(iter(batch.values())))
            return {name: each * rows for name, each in self._model(batch).items()}

    running = {role: Dynamic(model) for role, model in models(bundle).items()}
    queries = bundle.manifest.deployed.signature.smallest.input
    found = golden(bundle.code(), queries, bundle.envelope(), running)
    check_golden(encode_golden(found), running)
