"""KServe's own model server behind a server of ours, and KServe's SDK in front of it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from fleet_servers import PATIENCE, TESTS
from parity_models.models.bundle import open_bundle
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from ports import free_ports
from served import WEIGHTS, ServerProcess, predictions, queries, until, write_linear_bundle

pytestmark = pytest.mark.servers

KSERVE = TESTS.parent / ".servers" / "kserve" / "bin" / "python"
EXAMPLE = TESTS.parent / "examples" / "kserve" / "client.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


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
    "urls",
    [
        ["http://127.0.0.1:{0}?protocol=v1"],
        ["http://127.0.0.1:{0}", "grpc://127.0.0.1:{1}"],
    ],
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
    expected = [f"{protocol} {classes} model,model" for protocol in ("v1", "v2", "grpc-v2")]
    assert done.stdout.splitlines() == expected
