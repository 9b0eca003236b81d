"""What tests of serving share."""

from pathlib import Path

import pytest

from access_files import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate with its key, and tokens, of this test's own."""
    return Files(tmp_path)
