"""However a bundle is damaged or forged, opening it gives a bundle or a BundleError."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from parity_models.errors import BundleError
from parity_models.models.bundle import open_bundle
from parity_models.models.bundle_files import MANIFEST
from parity_models.models.manifest import decode_manifest
from served import write_linear_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("original"), backed=True)


@pytest.fixture(scope="module")
def copy(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies") / "bundle"


def opens_or_is_refused(folder: Path) -> None:
    """Anything but a BundleError is an error of ours."""
    with suppress(BundleError):
        open_bundle(folder)


def damaged(original: Path, copy: Path, file: str, content: bytes) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy)
    (copy / file).write_bytes(content)
    return copy


def signed(content: dict[str, Any]) -> bytes:
    """A manifest with the digest of what it says, as whoever forges one would write it."""
    content = {key: value for key, value in content.items() if key != "digest"}
    digest = hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
    return json.dumps({**content, "digest": digest}).encode()


@fuzz(150)
@given(st.data())
def test_mutated_manifests_are_refused(original: Path, data: st.DataObject) -> None:
    text = (original / MANIFEST).read_bytes()
    content = data.draw(mutated(st.just(text)))
    with suppress(BundleError):
        # White space is all that may differ.
        assert decode_manifest(content) == decode_manifest(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
JUNK = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS)


@fuzz(150)
@given(seed=st.integers(0, 2**32), junk=st.lists(JUNK, min_size=1, max_size=3))
@pytest.mark.slow
def test_forged_manifests_are_refused_or_describe_the_bundle(
    original: Path, copy: Path, seed: int, junk: list[Any]
) -> None:
    """Some values are replaced, and the digest fits what the manifest says then."""
    content = json.loads((original / MANIFEST).read_bytes())
    rng = Random(seed)
    for value in junk:
        place, key = rng.choice(places(content))
        place[key] = value
    try:
        text = signed(content)
    except (ValueError, UnicodeEncodeError):  # what JSON cannot say
        return
    opens_or_is_refused(damaged(original, copy, MANIFEST, text))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key or index there."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    found = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])
    return found


@fuzz(60)
@given(data=st.data(), file=st.sampled_from(["deployed.onnx", "parity-0.onnx", "backup.onnx"]))
def test_damaged_files_are_refused(
    original: Path, copy: Path, data: st.DataObject, file: str
) -> None:
    content = (original / file).read_bytes()
    changed = data.draw(mutated(st.just(content)))
    folder = damaged(original, copy, file, changed)
    if changed == content:
        open_bundle(folder)
    else:
        with pytest.raises(BundleError, match=file.replace(".", r"\.")):
            open_bundle(folder)


@fuzz(60)
@given(cut=st.integers(0, 40_000), file=st.sampled_from([MANIFEST, "deployed.onnx"]))
def test_truncated_files_are_refused(original: Path, copy: Path, cut: int, file: str) -> None:
    content = (original / file).read_bytes()
    folder = damaged(original, copy, file, content[:cut])
    if cut < len(content.rstrip()):
        with pytest.raises(BundleError):
            open_bundle(folder)
    else:
        opens_or_is_refused(folder)


@fuzz(60)
@given(data=st.data())
def test_forged_models_are_refused_or_run(original: Path, copy: Path, data: st.DataObject) -> None:
    """The manifest names the size and the hash of a model that is mutated."""
    content = (original / "deployed.onnx").read_bytes()
    # What comes first and last describes the graph; between are weights.
    head = data.draw(mutated(st.just(content[:300])))
    changed = head + content[300:]
    manifest = json.loads((original / MANIFEST).read_bytes())
    manifest["deployed"] |= {
        "sha256": hashlib.sha256(changed).hexdigest(),
        "size": len(changed),
    }
    folder = damaged(original, copy, "deployed.onnx", changed)
    (folder / MANIFEST).write_bytes(signed(manifest))
    opens_or_is_refused(folder)
