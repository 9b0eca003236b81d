"""Fixtures for tests of serving."""

from pathlib import Path

import pytest

from access_files import Files
from served import write_linear_bundle


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate with its key, and tokens, of this test's own."""
    return Files(tmp_path)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a parity model, which no test changes."""
    return write_linear_bundle(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the deployed model alone."""
    return write_linear_bundle(tmp_path_factory.mktemp("plain"), coded=False)


@pytest.fixture(scope="session")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a parity model and a backup, which predicts twice as much."""
    return write_linear_bundle(tmp_path_factory.mktemp("backed"), backed=True)
