"""Real Tritons behind `parm serve`: what `parm export` writes, loaded as it is; one is killed."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from fleet_servers import PATIENTLY, Triton, kill_and_mend
from parity_models.models.bundle import open_bundle
from parity_models.serving.remote.export import Format, export_repository
from served import ServerProcess, predictions, queries, write_linear_bundle
from text_models import add_to_repository, assert_served_upstream, write_text_bundle

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_bundle(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tritons(
    bundle: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Triton]]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(open_bundle(bundle), Format.TRITON, repository)
    add_to_repository(text, Format.TRITON, repository)
    with ExitStack() as stack:
        servers = [stack.enter_context(Triton(repository)) for _ in range(3)]
        for server in servers:
            server.wait_until_ready()
        yield servers


def test_a_triton_loads_what_is_exported(tritons: list[Triton]) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{tritons[0].port}") as client:
        rows = queries(5)
        tensor = tritonclient.http.InferInput("input", list(rows.shape), "FP32")
        for model in ("model", "model-parity-0"):
            result = client.infer(model, [tensor.set_data_from_numpy(rows)])
            np.testing.assert_allclose(
                result.as_numpy("output"), predictions(rows), rtol=1e-3, atol=1e-5
            )


async def test_a_triton_runs_a_model_of_several_inputs_and_any_length(
    text: Path, tritons: list[Triton]
) -> None:
    await assert_served_upstream(text, tritons[0].url, tritons[1].grpc_url)


def test_a_triton_of_three_killed_under_load_fails_no_request_and_comes_back(
    bundle: Path, tritons: list[Triton]
) -> None:
    """Over REST and over gRPC; each runs both models."""
    first, second, third = tritons
    urls = f"{first.url},{second.grpc_url},{third.url}"
    with ServerProcess(
        *(str(bundle), "--deployed", urls, "--parity", urls),
        *("--policy", "parity", "--grpc-port", "0"),
        *PATIENTLY,
    ) as front:
        kill_and_mend(front, [first, second], 3)
