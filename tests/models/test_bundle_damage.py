"""A bundle that is damaged is refused with the file and the reason."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_models import linear_model
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle, open_bundle
from whole_bundle import FILES


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
