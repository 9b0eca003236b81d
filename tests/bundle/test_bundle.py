"""A bundle opens as it was written, is written whole or not at all, and refused if unsound."""

import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fuzzing import fuzz, mutated
from onnx_models import Described, graph_model, linear_model
from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, with_measured, write_bundle
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError
from parity_models.trust.gate import Calibration
from present import some
from whole_bundle import ACCURACY, CODE, FILES, TRAINING, tamper, write

SUM = CodeSpec("sum", "subtraction", 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear models by shape: 4 to 3 as deployed.onnx, and 8 to 2x3 as parity.onnx."""
    folder = tmp_path_factory.mktemp("models")
    linear_model(folder / "deployed.onnx", (4,), (3,))
    linear_model(folder / "parity.onnx", (8,), (2, 3))
    return folder


@pytest.fixture(scope="module")
def original(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with all that one can hold."""
    return write(tmp_path_factory.mktemp("original") / "bundle", models)


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Path:
    """A copy of the original, to be damaged."""
    return Path(shutil.copytree(original.path, tmp_path / "bundle"))


def test_a_bundle_opens_as_it_was_written(original: Bundle) -> None:
    opened = open_bundle(str(original.path))
    assert opened == original
    assert opened.manifest.name == "clothes"
    assert opened.manifest.deployed_training == TRAINING
    assert opened.manifest.accuracy == ACCURACY
    assert opened.manifest.versions.keys() >= {"parity-models", "onnxruntime", "python"}
    code = some(opened.code())
    assert (code.spec, code.query_shape, code.output_shape) == (CODE, (4,), (3,))
    assert {path.name for path in original.path.iterdir()} == set(FILES)


def test_optional_fields_of_a_manifest_may_be_missing(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["backup"], content["backup_training"]
        del content["accuracy"]["backup_accuracy"]
        del content["envelope"]

    tamper(bundle, change)
    opened = open_bundle(bundle)
    assert (opened.manifest.backup, opened.manifest.accuracy) == (None, ACCURACY)
    assert not opened.isolated
    assert opened.envelope() is None


def test_a_bundle_replaces_a_bundle_and_leaves_nothing_else(bundle: Path, models: Path) -> None:
    written = write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    opened = open_bundle(bundle)
    assert opened == written
    assert (opened.code(), opened.manifest.parity, opened.manifest.backup) == (None, (), None)
    assert opened.manifest.name == "model"
    assert {path.name for path in bundle.iterdir()} == {"deployed.onnx", "manifest.json"}
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_failed_write_leaves_the_old_bundle(bundle: Path, models: Path, original: Bundle) -> None:
    deployed = NewModel(models / "deployed.onnx", "linear")
    cast = helper.make_node("Cast", ["input"], ["output"], to=FLOAT)
    ids = NewModel(save([cast], (TensorProto.INT64, ["n", 4]), (FLOAT, ["n", 4])), "cast")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parity": [deployed], "code": CODE}, r"parity-0.onnx has input .* needs FP32 \[8\]"),
        ({"parity": [deployed]}, "names 1 parity models where its code needs 0"),
        ({"backup": NewModel(models / "parity.onnx", "large")}, r"backup.onnx has input .* needs"),
        ({"name": "a/b"}, "cannot be called 'a/b'"),
        ({"files": {"../escape": b""}}, r"schema: .*\$.files"),
        ({"files": {"deployed.onnx": b""}}, "two files called deployed.onnx"),
        ({"files": {"manifest.json": b""}}, "two files called manifest.json"),
        ({"parity": [ids], "code": SUM} | {"deployed": ids}, "needs floating point, got int64"),
    ]
    for arguments, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(bundle, **({"deployed": deployed} | arguments))
        assert open_bundle(bundle).manifest == original.manifest
        assert list(bundle.parent.iterdir()) == [bundle]


def test_a_folder_with_anything_else_in_it_is_not_replaced(models: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    deployed = NewModel(models / "deployed.onnx", "linear")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(BundleError, match="is not a bundle that could be replaced"):
            write_bundle(path, deployed=deployed)
    with pytest.raises(BundleError, match="cannot write the bundle"):
        write_bundle(tmp_path / "thesis.tex" / "bundle", deployed=deployed)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", deployed=deployed).path == tmp_path / "empty"


def test_measurements_enter_the_manifest_in_one_step(bundle: Path, models: Path) -> None:
    accuracy = msgspec.structs.replace(ACCURACY, degraded_accuracy=0.85)
    updated = with_measured(open_bundle(bundle), accuracy=accuracy)
    assert updated.manifest.accuracy == accuracy
    assert open_bundle(bundle) == updated
    assert {path.name for path in bundle.iterdir()} == set(FILES)
    boxes = Calibration("boxes", 0.5, "none", 10, 0.05)
    with_measured(updated, calibration={"reconstruction": boxes})
    with pytest.raises(BundleError, match="the gate of the reconstruction is for boxes"):
        open_bundle(bundle)
    write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    with pytest.raises(BundleError, match="was replaced in the meantime"):
        with_measured(updated, accuracy=ACCURACY)
    assert open_bundle(bundle).manifest.accuracy is None


# Damaged


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_short_or_missing_is_refused_by_name(bundle: Path, file: str) -> None:
    path = bundle / file
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=f"{file}.*(damaged|incomplete)"):
            open_bundle(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=file):
        open_bundle(bundle)


@given(st.binary(max_size=300) | st.sampled_from([b"[" * 10**5, b'{"format":' * 10**5]))
def test_any_bytes_for_a_manifest_are_refused(original: Bundle, content: bytes) -> None:
    path = original.path.with_name("noise")
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json is damaged or not a bundle's manifest"):
        open_bundle(path)


def test_links_and_pipes_that_leave_the_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "blobs").mkdir()
    (bundle / "deployed.onnx").rename(bundle / "blobs" / "1")
    (bundle / "deployed.onnx").symlink_to("blobs/1")
    (tmp_path / "latest").symlink_to(bundle)
    assert open_bundle(tmp_path / "latest").manifest.name == "clothes"
    for file in ("golden.msgpack", "parity-0.onnx", "manifest.json"):
        (bundle / file).rename(tmp_path / file)
        (bundle / file).symlink_to(tmp_path / file)
        with pytest.raises(BundleError, match=f"{file} links to a file outside the bundle"):
            open_bundle(bundle)
        (tmp_path / file).replace(bundle / file)
    (bundle / "deployed.onnx").unlink()
    os.mkfifo(bundle / "deployed.onnx")
    with pytest.raises(BundleError, match=r"deployed.onnx is missing or not a file"):
        open_bundle(bundle)


# Changed and signed again


def put(content: Any, place: str, value: object) -> None:
    """Put `value` at `place`, a path like "parity/0/file"."""
    *way, last = [int(key) if key.isdigit() else key for key in place.split("/")]
    for key in way:
        content = content[key]
    content[last] = value


def places(content: Any, prefix: str = "") -> list[str]:
    """The paths of all values in `content`."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append(f"{prefix}{key}")
        if isinstance(value, dict | list):
            found += places(value, f"{prefix}{key}/")
    return found


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("format", "zip", "has format 'zip', not 'parity-models-bundle'"),
        ("format_version", 5, "format version 5, .* reads 4; install a newer"),
        ("format_version", 3, "format version 3, .* reads 4; make the bundle again"),
        ("colour", "red", "unknown field `colour`"),
        ("code/colour", "red", r"unknown field `colour` - at `\$.code`"),
        ("deployed/sha256", "0" * 64, "deployed.onnx is damaged or was changed"),
        ("deployed/file", "../deployed.onnx", r"\$.deployed.file"),
        ("deployed/file", "deployed.onnx\n", r"\$.deployed.file"),
        ("deployed/signature/inputs/0/datatype", "FP8", "'FP8' is not one of FP16, FP32"),
        ("deployed/signature/inputs/0/shape", [2**14, 2**15], "has more than 268435456 values"),
        ("deployed/signature/inputs/0/shape", [2**28], "parity queries are too large"),
        ("deployed/signature/inputs/0/name", "image", "has input 'input' .*'image' .* is promised"),
        ("deployed/signature/outputs/0/datatype", "INT64", "decoders compute with predictions"),
        ("parity/0/signature/inputs/0/shape", [4], r"needs FP32 \[8\]"),
        ("backup/signature/inputs/0/shape", [5], r"for the deployed model needs FP32 \[4\]"),
        ("code/k", 1, "names a code that cannot be built: k must be 2 or more"),
        ("code/encoder", "product", "names a code that cannot be built: there is no encoder"),
        ("code/encoder_options", {"colour": 1}, "colour is not an option of the encoder stack"),
        ("accuracy/available_accuracy", 1.5, r"\$.accuracy.available_accuracy"),
        ("inference_times", {"deployed": 0.0, "parity": None}, r"\$.inference_times.deployed"),
    ],
)
def test_false_promises_are_refused(bundle: Path, place: str, value: object, reason: str) -> None:
    tamper(bundle, lambda content: put(content, place, value))
    with pytest.raises(BundleError, match=reason):
        open_bundle(bundle)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@pytest.mark.slow
@given(st.data())
def test_a_changed_manifest_opens_or_is_refused(original: Bundle, data: st.DataObject) -> None:
    path = original.path.with_name("replaced")
    shutil.copytree(original.path, path, dirs_exist_ok=True)

    def change(content: dict[str, Any]) -> None:
        put(content, data.draw(st.sampled_from(places(content))), data.draw(JSON))

    tamper(path, change)
    with suppress(BundleError):
        open_bundle(path)


@fuzz(60)
@given(data=st.data())
def test_forged_models_are_refused_or_run(original: Bundle, data: st.DataObject) -> None:
    """The manifest names the size and the hash of a model that is mutated."""
    path = original.path.with_name("forged")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original.path, path)
    content = (path / "deployed.onnx").read_bytes()
    # The first bytes describe the graph; weights follow.
    changed = data.draw(mutated(st.just(content[:300]))) + content[300:]
    (path / "deployed.onnx").write_bytes(changed)

    def change(manifest: dict[str, Any]) -> None:
        manifest["deployed"] |= {"sha256": sha256(changed).hexdigest(), "size": len(changed)}

    tamper(path, change)
    with suppress(BundleError):
        open_bundle(path)


# Models

FLOAT = TensorProto.FLOAT


IDENTITY = helper.make_node("Identity", ["input"], ["output"])


def save(nodes: list[onnx.NodeProto], input: Described, output: Described) -> bytes:
    return graph_model(nodes, {"input": input}, {"output": output}, opsets={"nobody.knows": 1})


def external(folder: Path) -> Path:
    """Return a model whose weights are in another file."""
    path = folder / "outer.onnx"
    linear_model(path, (4,), (3,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    return path


def test_models_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    row, free, half = (FLOAT, ["n", 2]), (FLOAT, ["n", "m"]), (TensorProto.BFLOAT16, ["n", 2])
    huge = (FLOAT, ["n", 2**40])
    strange = helper.make_node("Strange", ["input"], ["output"], domain="nobody.knows")
    rows_of_its_own = [
        helper.make_node("NonZero", ["input"], ["where"]),
        helper.make_node("Cast", ["where"], ["columns"], to=FLOAT),
        helper.make_node("Transpose", ["columns"], ["output"]),
    ]
    cases: list[tuple[Path | bytes, str]] = [
        (b"", "cannot be loaded by ONNX Runtime"),
        (tmp_path / "absent.onnx", "absent.onnx is missing"),
        (external(tmp_path), "keeps its weights in another file"),
        ((tmp_path / "outer.onnx").read_bytes(), "keeps its weights in another file"),
        (save([IDENTITY], input=free, output=free), "only the batch axis may be free"),
        (save([IDENTITY], input=half, output=half), "not of numbers or strings"),
        (save([IDENTITY], input=huge, output=huge), "cannot be served: a row of shape"),
        (save([strange], input=row, output=row), "uses an operator that ONNX Runtime lacks"),
        (save(rows_of_its_own, input=row, output=row), r"of shape \(0, 2\) where it declares"),
    ]
    for model, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(tmp_path / "bundle", deployed=NewModel(model, "any"))
        assert not (tmp_path / "bundle").exists()
