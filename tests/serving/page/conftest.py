"""A server with a live page, once for all tests of a module."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from served import ServerProcess

SLOW = {"service_time": {"type": "constant", "seconds": 0.02}}


@pytest.fixture(scope="module")
def server(backed: Path) -> Iterator[ServerProcess]:
    options = ("--ui", "--instances", "3", "--agreement", "0", "--faults", json.dumps(SLOW))
    with ServerProcess(str(backed), *options) as server:
        yield server
