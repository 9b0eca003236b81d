"""Real servers upstream: Tritons, which load what `parm export` writes, MLServer, and KServe's.

Some are killed. KServe's SDK is also a client in front.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http

from fleet_servers import PATIENCE, PATIENTLY, TESTS, MLServer, Parm, Triton, kill_and_mend
from parity_models import Server, export_repository, open_bundle
from parity_models.serving.options import EngineChoice, ServeOptions
from ports import free_ports
from served import INPUTS, OUTPUTS, WEIGHTS, ServerProcess, predictions, queries, until
from text_models import add_to_repository, assert_served_upstream, write_text_bundle
from triton_requests import http_input

pytestmark = pytest.mark.servers

KSERVE = TESTS.parent / ".servers" / "kserve" / "bin" / "python"
EXAMPLE = TESTS.parent / "examples" / "kserve" / "client.py"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_bundle(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tritons(
    bundle: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Triton]]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(open_bundle(bundle), repository)
    add_to_repository(text, repository)
    with ExitStack() as stack:
        servers = [stack.enter_context(Triton(repository)) for _ in range(3)]
        for server in servers:
            server.wait_until_ready()
        yield servers


def test_a_triton_loads_what_is_exported(tritons: list[Triton]) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{tritons[0].port}") as client:
        rows = queries(5)
        for model in ("model", "model-parity-0"):
            found = client.infer(model, [http_input(rows)]).as_numpy("output")
            np.testing.assert_allclose(found, predictions(rows), rtol=1e-3, atol=1e-5)


async def test_a_triton_runs_a_model_of_any_length(text: Path, tritons: list[Triton]) -> None:
    await assert_served_upstream(text, tritons[0].url, tritons[1].grpc_url)


def test_a_triton_killed_under_load_fails_no_request(bundle: Path, tritons: list[Triton]) -> None:
    """Over REST and over gRPC; each runs both models."""
    first, second, third = tritons
    urls = f"{first.url},{second.grpc_url},{third.url}"
    with ServerProcess(
        *(str(bundle), "--deployed", urls, "--parity", urls),
        *("--policy", "parity", "--grpc-port", "0"),
        *PATIENTLY,
    ) as front:
        kill_and_mend(front, [first, second], 3)


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    repository = tmp_path_factory.mktemp("mlserver") / "repository"
    for name in ("model", "model-parity-0"):
        (repository / name).mkdir(parents=True)
        np.save(repository / name / "weights.npy", WEIGHTS)
        shutil.copy(TESTS / "servers" / "mlserver_model.py", repository / name)
        settings: dict[str, Any] = {"name": name, "implementation": "mlserver_model.Linear"}
        settings |= {"parameters": {"uri": "./weights.npy"}}
        settings |= {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, INPUTS]}]}
        settings |= {"outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, OUTPUTS]}]}
        (repository / name / "model-settings.json").write_text(json.dumps(settings))
    with MLServer(repository) as server:
        server.wait_until_ready()
        yield server


def test_an_mlserver_killed_under_load_fails_no_request(bundle: Path, mlserver: MLServer) -> None:
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


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Those of a model server of KServe, for REST and for gRPC."""
    assert KSERVE.exists(), f"there is no KServe at {KSERVE}; make servers installs it"
    folder = tmp_path_factory.mktemp("kserve")
    np.save(folder / "weights.npy", WEIGHTS)
    port, grpc_port = free_ports(2)
    command = [KSERVE, TESTS / "servers" / "kserve_model.py", folder / "weights.npy"]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--http_port", str(port), "--grpc_port", str(grpc_port)],
            env=own | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        with suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{port}/v2/models/model/ready"
            return httpx.get(url, verify=False).is_success
        return False

    try:
        until(ready, f"{folder / 'log'} does not tell that KServe is ready", PATIENCE)
        yield port, grpc_port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "urls", [["http://127.0.0.1:{0}?protocol=v1"], ["http://127.0.0.1:{0}", "grpc://127.0.0.1:{1}"]]
)
async def test_it_is_an_upstream_over_each_of_its_protocols(
    bundle: Path, ports: tuple[int, int], urls: list[str]
) -> None:
    deployed = ",".join(url.format(*ports) for url in urls)
    options = ServeOptions(port=0, engine=EngineChoice("remote", {"deployed": deployed}))
    async with Server(open_bundle(bundle), options) as server:
        for seed in range(2 * len(urls)):
            rows = queries(3, seed)
            answers = await server.deployment.frontend.infer(rows)
            np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)


def test_its_sdk_knows_every_key_of_the_manifests(tmp_path: Path) -> None:
    reader = TESTS / "servers" / "kserve_keys.py"
    manifests = [
        EXAMPLE.with_name(f"{name}.yaml") for name in ("servingruntime", "inferenceservice")
    ]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(manifests[0].read_text().replace("autoSelect", "autoselect"))
    done = subprocess.run([KSERVE, reader, *manifests, wrong], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ServingRuntime.spec.supportedModelFormats.autoselect\n"


def test_its_sdk_is_a_client_over_each_of_its_protocols(bundle: Path, tmp_path: Path) -> None:
    """The example, as it is."""
    np.save(tmp_path / "queries.npy", queries(2))
    classes = predictions(queries(2)).argmax(axis=1).tolist()
    options = ("--policy", "none", "--instances", "1", "--grpc-port", "0")
    with ServerProcess(str(bundle), *options) as server:
        asked = ["model", "input", str(tmp_path / "queries.npy")]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [KSERVE, EXAMPLE, server.url, server.grpc_address, *asked],
            env=own,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    expected = [f"{protocol} {classes} model,model" for protocol in ("v2", "grpc-v2")]
    assert done.stdout.splitlines() == expected
