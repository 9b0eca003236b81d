"""Engines of these tests put their temporary files where the test can see them."""

import tempfile
from pathlib import Path

import pytest

from onnx_models import moody_model


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of this test's engines."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that takes as long as its rows say."""
    moody_model(tmp_path / "m.onnx")
    return tmp_path / "m.onnx"
