"""A real MLServer behind `parm serve`: what `parm export` writes, loaded as it is; it is killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_servers import PATIENTLY, MLServer, Parm, kill_and_mend
from parity_models.models.bundle import open_bundle
from parity_models.serving.remote.export import Format, export_repository
from served import ServerProcess, write_linear_bundle
from text_models import add_to_repository, assert_served_upstream, write_text_bundle

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_bundle(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def mlserver(
    bundle: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MLServer]:
    repository = tmp_path_factory.mktemp("mlserver") / "repository"
    export_repository(open_bundle(bundle), Format.MLSERVER, repository)
    add_to_repository(text, Format.MLSERVER, repository)
    with MLServer(repository) as server:
        server.wait_until_ready()
        yield server


async def test_an_mlserver_runs_a_model_of_several_inputs_and_any_length(
    text: Path, mlserver: MLServer
) -> None:
    await assert_served_upstream(text, mlserver.url, mlserver.grpc_url)


def test_an_mlserver_killed_under_load_fails_no_request_and_comes_back(
    bundle: Path, mlserver: MLServer
) -> None:
    """Beside a server of this software. It takes queries as JSON data over REST, and parity
    queries over gRPC."""
    with (
        Parm(bundle) as other,
        ServerProcess(
            *(str(bundle), "--policy", "parity", "--grpc-port", "0"),
            *("--deployed", f"{other.url},{mlserver.url}", "--parity", mlserver.grpc_url),
            *PATIENTLY,
        ) as front,
    ):
        kill_and_mend(front, [mlserver], 2)
