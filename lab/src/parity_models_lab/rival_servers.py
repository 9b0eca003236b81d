"""Triton and Envoy, in processes of their own; `make servers` installs both."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import httpx

from parity_models.errors import LoadError, UserError
from parity_models_lab.processes import START_TIMEOUT

ROOT = Path(__file__).resolve().parents[3]
SERVERS = ROOT / ".servers"

CONFIGURATION = resources.files("parity_models_lab") / "envoy.yaml"
"""Envoy's, and below a line the route of requests that are copied after a delay."""


@contextmanager
def triton(repository: Path, prefix: Sequence[str] = ()) -> Iterator[tuple[int, int, int]]:
    """Serve a repository of models while the context lasts, by a command that begins with `prefix`;
    gives the ports of HTTP and gRPC, and the process's id.

    Raises UserError if Triton is not installed, and LoadError, with the end of its log, if it ends
    or hangs.
    """
    port, grpc_port = _free_ports(2)
    program = (sys.executable, str(ROOT / "tests" / "servers" / "triton.py"), str(repository))
    with _started("triton", (*prefix, *program, str(port), str(grpc_port)), port) as pid:
        yield port, grpc_port, pid


def hedging(after: float) -> dict[str, str]:
    """Return the headers of a request that Envoy copies to another server after so many seconds."""
    return {"x-hedged-after": f"{after:g}"}


@contextmanager
def envoy(ports: Sequence[int], delays: Sequence[float]) -> Iterator[tuple[str, int]]:
    """Run Envoy in front of these servers while the context lasts; gives its URL and process id.

    Raises UserError if it is not installed, and LoadError, with its log, if it does not start.
    """
    (port,) = _free_ports(1)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(_configuration(port, ports, delays))
        file.flush()
        program = (str(SERVERS / "envoy" / "envoy" / "_bin" / "envoy"), "-c", file.name)
        arguments = ("--use-dynamic-base-id", "--concurrency", "1")
        with _started("envoy", (*program, *arguments), port) as pid:
            yield f"http://127.0.0.1:{port}", pid


def _configuration(port: int, ports: Sequence[int], delays: Sequence[float]) -> str:
    text, route, server = CONFIGURATION.read_text().split("---\n")
    text = text.replace("LISTENING", str(port)).replace("CHOICES", str(len(ports)))
    text = text.replace("HEDGED", "".join(route.replace("AFTER", f"{each:g}") for each in delays))
    return text.replace("SERVERS", "".join(server.replace("PORT", str(each)) for each in ports))


@contextmanager
def _started(name: str, command: Sequence[str], port: int) -> Iterator[int]:
    """Run a server while the context lasts; gives its process id when the server is ready."""
    if not (SERVERS / name).exists():
        raise UserError(f"{ROOT} has no {name.title()} to compare with; run make servers there")
    with tempfile.NamedTemporaryFile("w+") as log:
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=threads, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_TIMEOUT
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > until:
                    end = Path(log.name).read_text()[-2000:]
                    raise LoadError(f"{name.title()} is not ready: {end}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").is_success
    except httpx.TransportError:
        return False


def _free_ports(number: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
