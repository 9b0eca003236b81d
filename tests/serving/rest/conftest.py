"""A server with clients for each module."""

from collections.abc import Iterator

import httpx
import pytest
import tritonclient.http as triton

from served import ServerProcess, write_linear_bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """It takes bodies of 1 MiB and 300 rows, and loses no instance."""
    bundle = write_linear_bundle(tmp_path_factory.mktemp("bundle"))
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
