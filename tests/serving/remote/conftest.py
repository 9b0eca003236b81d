"""Fixtures of the remote engine's tests."""

from pathlib import Path

import pytest

from onnx_models import linear_model
from upstream_engines import WEIGHTS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    linear_model(tmp_path / "m.onnx", (6,), (4,), WEIGHTS)
    return tmp_path / "m.onnx"
