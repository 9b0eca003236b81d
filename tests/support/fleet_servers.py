"""Upstreams as processes (Triton, MLServer, this software), and the test of one that is killed."""

import os
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import tritonclient.grpc

from ports import free_ports
from served import Clients, ServerProcess, infer, predictions, queries, until
from triton_requests import grpc_input

TESTS = Path(__file__).parent.parent
MLSERVER = TESTS.parent / ".servers" / "mlserver" / "bin" / "mlserver"
PATIENCE = 240.0
"""Seconds for what takes few where the machine has nothing else to do."""

PATIENTLY = ("--deadline", str(PATIENCE))
"""For a server that is to refuse nobody while its queue is short, however slow the machine is: a
standing queue is refused by the share that a wait is of the deadline."""

SHARED_MEMORY = re.compile(rb"triton_onnxruntime_backend_shm_region_[0-9a-f-]+")


class FleetServer(ABC):
    """A real server over a model repository, with a port each for REST and gRPC."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.port, self._grpc_port, self._metrics_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_url = f"grpc://127.0.0.1:{self._grpc_port}"
        self._log = repository.with_name(f"{self.port}.log")
        self.start()

    @abstractmethod
    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        """Return the command that starts it, and variables for its environment."""

    def start(self) -> None:
        """Start it, for the first time or again; `wait_until_ready` waits for that."""
        command, environment = self.command()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._repository,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            with suppress(httpx.TransportError):
                return all(
                    httpx.get(f"{self.url}/v2/models/{model.name}/ready", verify=False).is_success
                    for model in self._repository.iterdir()
                    if model.is_dir()
                )
            return False

        until(ready, f"{self._log} does not tell that the server is ready", PATIENCE)

    def kill(self) -> None:
        """As if its machine failed: kill -9 of the server and the processes it has."""
        regions = _shared_memory(self._process.pid)
        with suppress(ProcessLookupError):  # where it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for region in regions:
            Path("/dev/shm", region).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.kill()


class Triton(FleetServer):
    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        program = [sys.executable, str(TESTS / "servers" / "triton.py"), str(self._repository)]
        return [*program, str(self.port), str(self._grpc_port)], {}


class MLServer(FleetServer):
    def command(self) -> tuple[Sequence[str], dict[str, str]]:
        assert MLSERVER.exists(), f"there is no MLServer at {MLSERVER}; make servers installs it"
        settings = {
            "HOST": "127.0.0.1",
            "HTTP_PORT": self.port,
            "GRPC_PORT": self._grpc_port,
            "METRICS_PORT": self._metrics_port,
            "PARALLEL_WORKERS": 0,
        }
        environment = {f"MLSERVER_{name}": str(value) for name, value in settings.items()}
        return [str(MLSERVER), "start", "."], environment


class Parm:
    """`parm serve` of a bundle's deployed model alone, on ports that it keeps."""

    def __init__(self, bundle: Path, *options: str) -> None:
        self._bundle, self._options = bundle, options
        self._ports = [str(port) for port in free_ports(2)]
        self.start()

    def start(self) -> None:
        port, grpc_port = self._ports
        self._server = ServerProcess(
            *(str(self._bundle), "--policy", "none", "--instances", "1"),
            *("--port", port, "--grpc-port", grpc_port, *self._options),
        )
        self.url = self._server.url
        self.grpc_url = f"grpc://{self._server.grpc_address}"

    def kill(self) -> None:
        self._server.signal(signal.SIGKILL)
        self._server.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        self._server.__exit__(kind)


def kill_and_mend(
    front: ServerProcess, victims: Sequence[FleetServer | Parm], instances: int
) -> None:
    """Kill each of the `victims` under load, over HTTP and gRPC, and start it again: no request
    fails, every query is answered once, and `front` is back at full strength."""

    def up() -> float:
        return front.metric(r'parm_instances_up\{role="deployed"\}')

    assert up() == instances

    def ask_grpc(_: object, number: int) -> None:
        rows = queries(2, number)
        found = grpc.infer("model", [grpc_input(rows)]).as_numpy("output")
        np.testing.assert_allclose(found, predictions(rows), rtol=1e-3, atol=1e-5)

    def ask_http(client: httpx.Client, number: int) -> None:
        infer(client, queries(2, number), front.url).raise_for_status()

    with (
        tritonclient.grpc.InferenceServerClient(front.grpc_address) as grpc,
        Clients(ask_http, 2) as over_http,
        Clients(ask_grpc, 2) as over_grpc,
    ):

        def more() -> None:
            for each in (over_http, over_grpc):
                each.more(10)

        more()
        for victim in victims:
            victim.kill()
            until(lambda: up() == instances - 1, "the server is not ejected", PATIENCE)
            more()
            victim.start()
            until(lambda: up() == instances, "the server is not back", PATIENCE)
            more()
    answered = len(over_http.answers) + len(over_grpc.answers)
    assert front.metric("parm_query_failures_total") == 0
    assert front.metric("parm_requests_total") == answered
    assert front.metric("parm_query_latency_seconds_count") == 2 * answered
    assert front.metric("parm_upstream_ejections_total") >= len(victims)


def _shared_memory(pid: int) -> set[str]:
    """Return the shared memory of Triton's Python backend, which a killed process leaves."""
    regions = set[str]()
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found = SHARED_MEMORY.search(Path(f"/proc/{child}/cmdline").read_bytes())
            regions |= {found[0].decode()} if found else set()
    return regions
