"""A bundle with all that one can hold, for the tests of one file."""

import shutil
from pathlib import Path

import pytest

from onnx_models import linear_model
from parity_models.models.bundle import Bundle
from whole_bundle import write


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
