"""A server with clients for each module."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.http as triton
import uvloop

from served import ServerProcess


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of the HTTP layer on both kinds of event loop."""
    both = {"uvloop": uvloop.new_event_loop} if item.path.name == "test_http.py" else {}
    return {**both, "asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    """It takes bodies of 1 MiB and 300 rows, and loses no instance."""
    with ServerProcess(str(bundle), "--max-body", "1", "--max-queue", "300") as process:
        yield process
        assert process.process.poll() is None
        assert process.metric("parm_instance_restarts_total") == 0


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client
