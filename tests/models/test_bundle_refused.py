"""A bundle that is damaged, or changed and signed again, is refused with the reason."""

import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from onnx_models import linear_model
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle, open_bundle
from whole_bundle import FILES, tamper

# Damaged


@pytest.mark.parametrize("file", FILES)
@pytest.mark.slow
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


# Changed and signed again


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
        ("format_version", 4, "format version 4, .* reads up to 3; install a newer"),
        ("format_version", 0, "format_version"),
        ("name", "a/b", r"\$.name"),
        ("colour", "red", "unknown field `colour`"),
        ("deployed/colour", "red", r"unknown field `colour` - at `\$.deployed`"),
        ("parity/0/signature/inputs/0/colour", "red", "unknown field `colour`"),
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
        ("deployed/signature/inputs/0/datatype", "FP8", "'FP8' is not one of FP16, FP32"),
        ("deployed/signature/inputs/0/datatype", "FP64", "needs FP64"),
        ("deployed/signature/inputs/0/shape", [5], "has input"),
        ("deployed/signature/inputs/0/shape", [0], r"\$.deployed.signature.inputs"),
        ("deployed/signature/inputs/0/shape", [10**30], r"\$.deployed.signature.inputs"),
        ("deployed/signature/inputs/0/shape", [2**14, 2**15], "has more than 268435456 values"),
        ("deployed/signature/inputs/0/shape", [2**28], "parity queries are too large"),
        (
            "deployed/signature/inputs/0/name",
            "image",
            "deployed.onnx has input 'input' .*'image' .* is promised",
        ),
        ("deployed/signature/outputs/0/datatype", "INT64", "decoders compute with predictions"),
        (
            "parity/0/signature/outputs/0/name",
            "logits",
            "parity-0.onnx has output .*'logits' .* is promised",
        ),
        ("parity/0/signature/inputs/0/shape", [4], r"needs FP32 \[8\]"),
        ("parity/0/signature/outputs/0/shape", [3], r"needs FP32 \[2, 3\]"),
        ("parity", [], "names 0 parity models where its code needs 1"),
        ("code", None, "names 1 parity models where its code needs 0"),
        (
            "backups/0/signature/inputs/0/shape",
            [5],
            r"a backup for the deployed model needs FP32 \[4\]",
        ),
        ("backups/0/signature/outputs/0/datatype", "FP64", r"a backup .* needs FP32 \[3\]"),
        (
            "backups/0/signature/outputs/0/name",
            "logits",
            "backup.onnx has output .*'logits' .* is promised",
        ),
        ("code/k", 3, r"needs FP32 \[12\]"),
        ("code/k", 1, "names a code that cannot be built: k must be 2 or more"),
        ("code/k", 10**9, "k can be 256 at most"),
        ("code/r", 2, "where its code needs 2"),
        ("code/encoder", "product", "names a code that cannot be built: there is no encoder"),
        ("code/encoder_options", {"axis": 9}, "have no axis 9"),
        (
            "code/encoder_options",
            {"colour": 1},
            "colour is no option of the encoder stack; it has axis, new_axis",
        ),
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
