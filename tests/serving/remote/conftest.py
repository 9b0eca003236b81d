"""What tests of the remote engine share."""

from pathlib import Path

import pytest

from onnx_models import linear_model
from parity_models.serving.remote import engine as remote
from upstream_engines import WEIGHTS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    linear_model(tmp_path / "m.onnx", (6,), (4,), WEIGHTS)
    return tmp_path / "m.onnx"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstreams are looked at often."""
    monkeypatch.setattr(remote, "HEALTH_INTERVAL", 0.05)
