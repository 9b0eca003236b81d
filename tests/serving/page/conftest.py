"""A server with a live page, once for all tests of a module."""

import json
from collections.abc import Iterator

import pytest

from served import ServerProcess, write_linear_bundle

SLOW = {"service_time": {"type": "constant", "seconds": 0.02}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_linear_bundle(tmp_path_factory.mktemp("bundle"), backed=True))


@pytest.fixture(scope="module")
def server(bundle: str) -> Iterator[ServerProcess]:
    options = ("--ui", "--instances", "3", "--agreement", "0", "--faults", json.dumps(SLOW))
    with ServerProcess(bundle, *options) as server:
        yield server
