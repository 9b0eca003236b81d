"""Fixtures for tests of serving."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from access_files import Files
from served import ServerProcess
from triton_requests import triton_client


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate with its key, and tokens, of this test's own."""
    return Files(tmp_path)


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Triton's client of the module's `server`, over each protocol."""
    with triton_client(server, request.param) as client:
        yield client
