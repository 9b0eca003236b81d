"""A bundle opens as it was written, or is refused with the file and the reason."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle import (
    Accuracy,
    Bundle,
    NewModel,
    Training,
    open_bundle,
    with_accuracy,
    write_bundle,
)
from parity_models.models.onnx_model import OnnxModel

CODE = CodeSpec("stack", "separate", 2, 1, {"axis": 0})
TRAINING = Training("digits", 1200, "0" * 64, 7, 3, 1.5, "cpu", {"rate": 0.1, "flips": True})
ACCURACY = Accuracy("top-1", 0.9, 0.8, (0.75, 0.85), {"0.1": 0.89}, 0.82, 400, (0.8,))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear models by shape: 4 to 3 as deployed.onnx, 8 to 2x3 as parity.onnx, and others."""
    folder = tmp_path_factory.mktemp("models")
    linear_model(folder / "deployed.onnx", (4,), (3,))
    linear_model(folder / "parity.onnx", (8,), (2, 3))
    return folder


@pytest.fixture(scope="module")
def original(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("original") / "bundle", models)


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Path:
    """A copy of the original, to be damaged."""
    return Path(shutil.copytree(original.path, tmp_path / "bundle"))


def write(path: Path, models: Path) -> Bundle:
    return write_bundle(
        path,
        deployed=NewModel(models / "deployed.onnx", "linear"),
        parity=[NewModel((models / "parity.onnx").read_bytes(), "linear")],
        backup=NewModel(models / "deployed.onnx", "small"),
        code=CODE,
        name="clothes",
        deployed_training=TRAINING,
        parity_training=TRAINING,
        backup_training=TRAINING,
        accuracy=ACCURACY,
        files={"deployed.safetensors": b"weights"},
    )


FILES = ["manifest.json", "deployed.onnx", "parity-0.onnx", "backup.onnx", "deployed.safetensors"]


def test_a_bundle_opens_as_it_was_written(original: Bundle) -> None:
    opened = open_bundle(str(original.path))
    assert opened == original
    assert opened.manifest.name == "clothes"
    assert opened.manifest.deployed_training == TRAINING
    assert opened.manifest.accuracy == ACCURACY
    assert opened.manifest.versions.keys() >= {"parity-models", "onnxruntime", "python"}
    code = opened.code()
    assert code is not None
    assert (code.spec, code.query_shape, code.output_shape) == (CODE, (4,), (3,))
    assert {path.name for path in original.path.iterdir()} == set(FILES)


def test_models_of_a_bundle_run_batches_of_any_size(original: Bundle) -> None:
    deployed = OnnxModel(original.deployed_path)
    (parity,) = [OnnxModel(path, threads=2, spinning=True) for path in original.parity_paths]
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 4)).astype(np.float32)
    together = deployed(rows)
    assert together.shape == (9, 3)
    np.testing.assert_allclose(together[2:3], deployed(rows[2:3]), rtol=1e-6)
    assert parity(rng.normal(size=(5, 8)).astype(np.float32)).shape == (5, 2, 3)


def test_a_bundle_of_only_a_deployed_model_has_no_code(models: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", deployed=NewModel(models / "deployed.onnx", "linear"))
    opened = open_bundle(tmp_path / "b")
    assert opened.code() is None
    assert opened.parity_paths == ()
    assert opened.backup_path is None
    assert opened.manifest.name == "model"


def test_a_manifest_from_before_there_were_backups_opens(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["backup"], content["backup_training"], content["accuracy"]["backup_accuracy"]

    tamper(bundle, change)
    manifest = open_bundle(bundle).manifest
    assert manifest.backup is None
    assert manifest.accuracy == ACCURACY


def test_a_manifest_from_before_there_were_envelopes_opens_and_is_not_isolated(
    bundle: Path,
) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["envelope"], content["parity"][0]["slotwise"]

    tamper(bundle, change)
    opened = open_bundle(bundle)
    assert not opened.isolated
    assert opened.envelope() is None


# Damage


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_short_anywhere_is_refused_by_name(bundle: Path, file: str) -> None:
    path = bundle / file
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=f"{file}.*(damaged|incomplete)"):
            open_bundle(bundle)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_changes_nothing_or_is_refused_by_name(
    bundle: Path, original: Bundle, file: str
) -> None:
    path = bundle / file
    whole = path.read_bytes()
    unnoticed = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        refusal = refusal_of(bundle)
        if refusal is None:
            unnoticed += 1
            assert open_bundle(bundle).manifest == original.manifest
        else:
            assert file in refusal
    blanks = sum(byte in b" \n" for byte in whole) if file == "manifest.json" else 0
    assert unnoticed <= blanks


def refusal_of(bundle: Path) -> str | None:
    try:
        open_bundle(bundle)
    except BundleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(bundle: Path, file: str) -> None:
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=f"{file}( is missing)?"):
        open_bundle(bundle)


def test_swapped_files_are_refused(bundle: Path) -> None:
    (bundle / "deployed.onnx").rename(bundle / "aside")
    (bundle / "parity-0.onnx").rename(bundle / "deployed.onnx")
    (bundle / "aside").rename(bundle / "parity-0.onnx")
    with pytest.raises(BundleError, match=r"deployed.onnx .* changed"):
        open_bundle(bundle)


def test_a_model_of_the_same_size_is_refused_by_its_hash(bundle: Path, tmp_path: Path) -> None:
    weights = np.zeros((4, 3), np.float32)
    linear_model(tmp_path / "deployed.onnx", (4,), (3,), weights)
    shutil.copy(tmp_path / "deployed.onnx", bundle / "deployed.onnx")
    with pytest.raises(BundleError, match=r"deployed.onnx is damaged or was changed: its sha256"):
        open_bundle(bundle)


def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    for path, reason in [
        (tmp_path / "nowhere", "there is no bundle at"),
        (tmp_path, "is not a bundle: it holds no manifest.json"),
        (bundle / "manifest.json", "is a file; give the folder"),
    ]:
        with pytest.raises(BundleError, match=reason):
            open_bundle(path)


@given(st.binary(max_size=300))
def test_any_bytes_for_a_manifest_are_refused(original: Bundle, content: bytes) -> None:
    path = original.path.with_name("noise")
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json is damaged or not a bundle's manifest"):
        open_bundle(path)


# Tampering, by one who knows how to make the digest match


def tamper(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's content and sign it again."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    digest = sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
    path.write_bytes(msgspec.json.encode({**content, "digest": digest}))


def replace(content: Any, place: str, value: object) -> None:
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
        ("format_version", 2, "format version 2, .* reads up to 1; install a newer"),
        ("format_version", 0, "format_version"),
        ("name", "a/b", r"\$.name"),
        ("colour", "red", "unknown field `colour`"),
        ("deployed/colour", "red", r"unknown field `colour` - at `\$.deployed`"),
        ("parity/0/input/colour", "red", "unknown field `colour`"),
        ("code/colour", "red", r"unknown field `colour` - at `\$.code`"),
        ("accuracy/colour", "red", "unknown field `colour`"),
        ("deployed", None, r"\$.deployed"),
        ("deployed/size", "279", r"Expected `int`, got `str` - at `\$.deployed.size`"),
        ("deployed/size", -1, r"\$.deployed.size"),
        ("deployed/sha256", "0", r"\$.deployed.sha256"),
        ("deployed/sha256", "0" * 64, "deployed.onnx is damaged or was changed"),
        ("deployed/file", "../deployed.onnx", r"\$.deployed.file"),
        ("deployed/file", "/etc/passwd", r"\$.deployed.file"),
        ("deployed/file", "models/deployed.onnx", r"\$.deployed.file"),
        ("deployed/file", "..", r"\$.deployed.file"),
        ("deployed/file", "deployed.onnx\n", r"\$.deployed.file"),
        ("files/0/file", "../secret", r"\$.files"),
        ("deployed/input/datatype", "FP8", "'FP8' is not one of FP16, FP32"),
        ("deployed/input/datatype", "FP64", "needs FP64"),
        ("deployed/input/shape", [5], "has input"),
        ("deployed/input/shape", [0], r"\$.deployed.input.shape"),
        ("deployed/input/shape", [10**30], r"\$.deployed.input.shape"),
        ("deployed/input/shape", [2**14, 2**15], "has more than 268435456 values"),
        ("deployed/input/shape", [2**28], "has input"),
        ("deployed/input/name", "image", "deployed.onnx has input 'input' .* promises 'image'"),
        ("deployed/output/datatype", "INT64", "decoders compute with predictions"),
        ("parity/0/output/name", "logits", "parity-0.onnx has output .* promises 'logits'"),
        ("parity/0/input/shape", [4], r"needs FP32 \[8\]"),
        ("parity/0/output/shape", [3], r"needs FP32 \[2, 3\]"),
        ("parity", [], "names 0 parity models where its code needs 1"),
        ("code", None, "names 1 parity models where its code needs 0"),
        ("backup/input/shape", [5], r"a backup for the deployed model needs FP32 \[4\]"),
        ("backup/output/datatype", "FP64", r"a backup .* needs FP32 \[3\]"),
        ("backup/output/name", "logits", "backup.onnx has output .* promises 'logits'"),
        ("code/k", 3, r"needs FP32 \[12\]"),
        ("code/k", 1, "names a code that cannot be built: k must be 2 or more"),
        ("code/k", 10**9, "k can be 256 at most"),
        ("code/r", 2, "where its code needs 2"),
        ("code/encoder", "product", "names a code that cannot be built: no encoder"),
        ("code/encoder_options", {"axis": 9}, "have no axis 9"),
        ("code/encoder_options", {"colour": 1}, "does not take the options"),
        ("accuracy/available_accuracy", 1.5, r"\$.accuracy.available_accuracy"),
        ("deployed_training/recipe/flips", [], r"\$.deployed_training.recipe"),
    ],
)
def test_a_manifest_that_promises_something_else_is_refused_with_the_reason(
    bundle: Path, place: str, value: object, reason: str
) -> None:
    tamper(bundle, lambda content: replace(content, place, value))
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


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_manifest_with_any_value_replaced_opens_or_is_refused(
    original: Bundle, data: st.DataObject
) -> None:
    path = original.path.with_name("replaced")
    shutil.copytree(original.path, path, dirs_exist_ok=True)

    def change(content: dict[str, Any]) -> None:
        replace(content, data.draw(st.sampled_from(places(content))), data.draw(JSON))

    tamper(path, change)
    with suppress(BundleError):
        open_bundle(path)


def test_a_manifest_changed_by_hand_is_refused_by_its_digest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"clothes"', '"shoes"'))
    with pytest.raises(BundleError, match=r"manifest.json was changed after it was written"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"format":' * 10**5])
def test_a_manifest_that_nests_without_end_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json is damaged"):
        open_bundle(bundle)


def test_a_manifest_of_a_megabyte_is_refused_unread(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(BundleError, match=r"manifest.json has 1048577 bytes; 1048576 are allowed"):
        open_bundle(bundle)


@pytest.mark.parametrize("file", FILES)
def test_links_that_leave_the_bundle_are_refused(bundle: Path, tmp_path: Path, file: str) -> None:
    (bundle / file).rename(tmp_path / file)
    (bundle / file).symlink_to(tmp_path / file)
    with pytest.raises(BundleError, match=f"{file} links to a file outside the bundle"):
        open_bundle(bundle)


def test_links_within_the_bundle_and_to_it_are_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "blobs").mkdir()
    (bundle / "deployed.onnx").rename(bundle / "blobs" / "1")
    (bundle / "deployed.onnx").symlink_to("blobs/1")
    (tmp_path / "latest").symlink_to(bundle)
    assert open_bundle(tmp_path / "latest").manifest.name == "clothes"


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(bundle: Path) -> None:
    (bundle / "deployed.onnx").unlink()
    os.mkfifo(bundle / "deployed.onnx")
    with pytest.raises(BundleError, match=r"deployed.onnx is missing or not a file"):
        open_bundle(bundle)


# Models that a bundle cannot hold


FLOAT = TensorProto.FLOAT
IDENTITY = helper.make_node("Identity", ["input"], ["output"])


def test_models_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    row, fixed, free = (FLOAT, ["n", 2]), (FLOAT, [1, 2]), (FLOAT, ["n", "m"])
    text, huge = (TensorProto.STRING, ["n", 2]), (FLOAT, ["n", 2**40])
    add = helper.make_node("Add", ["input", "input2"], ["output"])
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
        (save([add], input=row, input2=row, output=row), "has 2 inputs"),
        (save([IDENTITY], input=fixed, output=fixed), "without a free batch axis"),
        (save([IDENTITY], input=free, output=free), "only the batch axis may be free"),
        (save([IDENTITY], input=text, output=text), "not of numbers"),
        (save([IDENTITY], input=huge, output=huge), "is too large"),
        (save([strange], input=row, output=row), "uses an operator that ONNX Runtime lacks"),
        (save(rows_of_its_own, input=row, output=row), r"gives shape \(0, 2\) where it declares"),
    ]
    for model, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(tmp_path / "bundle", deployed=NewModel(model, "any"))
        assert not (tmp_path / "bundle").exists()


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


def test_weights_outside_the_model_file_are_never_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert (tmp_path / "weights.bin").is_file()
    for model in (path, path.read_bytes()):
        with pytest.raises(ModelError, match="keeps its weights in another file"):
            OnnxModel(model)


# Writing


def test_a_bundle_replaces_a_bundle_and_leaves_nothing_beside_it(
    bundle: Path, models: Path
) -> None:
    written = write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    assert open_bundle(bundle) == written
    assert {path.name for path in bundle.iterdir()} == {"deployed.onnx", "manifest.json"}
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_bundle_that_cannot_be_made_leaves_the_old_one_whole(
    bundle: Path, models: Path, original: Bundle
) -> None:
    deployed = NewModel(models / "deployed.onnx", "linear")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parity": [deployed], "code": CODE}, r"parity-0.onnx has input .* needs FP32 \[8\]"),
        ({"parity": [deployed]}, "names 1 parity models where its code needs 0"),
        ({"backup": NewModel(models / "parity.onnx", "large")}, r"backup.onnx has input .* needs"),
        ({"name": "a/b"}, r"schema: .*\$.name"),
        ({"files": {"../escape": b""}}, r"schema: .*\$.files"),
        ({"files": {"deployed.onnx": b""}}, "two files called deployed.onnx"),
        ({"files": {"manifest.json": b""}}, "two files called manifest.json"),
    ]
    for arguments, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(bundle, deployed=deployed, **arguments)
        assert open_bundle(bundle).manifest == original.manifest
        assert list(bundle.parent.iterdir()) == [bundle]


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


def test_accuracy_is_put_into_the_manifest_in_one_step(bundle: Path) -> None:
    accuracy = msgspec.structs.replace(ACCURACY, degraded_accuracy=0.85)
    updated = with_accuracy(open_bundle(bundle), accuracy)
    assert updated.manifest.accuracy == accuracy
    assert open_bundle(bundle) == updated
    assert {path.name for path in bundle.iterdir()} == set(FILES)


def test_accuracy_of_a_bundle_that_is_no_longer_there_is_refused(
    bundle: Path, models: Path
) -> None:
    before = open_bundle(bundle)
    write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    with pytest.raises(BundleError, match="was replaced in the meantime"):
        with_accuracy(before, ACCURACY)
    assert open_bundle(bundle).manifest.accuracy is None
