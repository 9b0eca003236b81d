"""Queries for loads."""

from pathlib import Path

import numpy as np
import pytest

from load_served import CLASSES


@pytest.fixture
def data(tmp_path: Path) -> str:
    """One row for each class; the last one's label is wrong."""
    path = tmp_path / "data.npz"
    labels = np.array([*range(CLASSES - 1), 0])
    np.savez(path, inputs=np.eye(CLASSES, dtype=np.float32), labels=labels)
    return str(path)
