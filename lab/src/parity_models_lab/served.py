"""Servers in processes of their own: a bundle's, with its faults on command, and Triton.

A bundle's process serves until its standard input ends, so that it cannot outlive its parent.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import psutil
import uvloop

from parity_models.bundle.bundle import open_bundle
from parity_models.errors import LoadError, ServingError, UserError
from parity_models.serving.client import model_path
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.server import ServeOptions, Server
from parity_models_lab.processes import (
    READY,
    START_TIMEOUT,
    Child,
    child,
    commands,
    run_child,
    tell,
)

BEGIN_FAULTS = b"begin faults\n"
"""Starts the clock of the server's fault plan."""
BUSY = b"busy\n"
"""Asks how long instances have been busy, all together."""
LAG = b"lag\n"
"""Asks how long reports and timers waited for the server's process on average."""
GRPC = b"gRPC\n"
"""Asks for the URL of gRPC."""


@asynccontextmanager
async def served(
    bundle: Path, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Child]:
    """Serve `bundle` while the context lasts, by a command that begins with `prefix`.

    The child's message is the server's URL; it obeys BEGIN_FAULTS, and answers `seconds`. Raises
    ServingError if it does not start.
    """
    given = msgspec.json.encode(options).decode()
    async with child((*prefix, sys.executable, "-m", __name__, str(bundle), given)) as server:
        yield server


async def seconds(server: Child, question: bytes) -> float:
    """Return a served bundle's answer to BUSY or LAG."""
    if not (answer := await server.ask(question)):
        raise ServingError("the server has ended")
    return float(answer)


def processes(pid: int) -> list[psutil.Process]:
    """Return the process, its children, theirs, and so on; none if it has gone."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def post(model: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole HTTP request for predictions of a model."""
    lines = [f"POST {model_path(model)}/infer HTTP/1.1", "Host: server"]
    headers = {**(headers or {}), "Content-Length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


# Triton

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def triton(repository: Path) -> Iterator[tuple[int, int, int]]:
    """Serve a repository of models while the context lasts; gives the ports of HTTP and gRPC, and
    the process's id.

    Raises UserError if Triton is not installed, and LoadError, with the end of its log, if it ends
    or hangs.
    """
    if not (ROOT / ".servers" / "triton").exists():
        raise UserError(f"{ROOT} has no Triton to compare with; run make servers there")
    port, grpc_port = free_ports(2)
    program = (str(ROOT / "tests" / "servers" / "triton.py"), str(repository))
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *program, str(port), str(grpc_port)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            wait_ready("Triton", process, port, Path(log.name))
            yield port, grpc_port, process.pid
        finally:
            process.terminate()
            process.wait()


def wait_ready(name: str, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until a server answers that it is ready.

    Raises LoadError, with the end of its log, if it ends or is not ready within START_TIMEOUT.
    """
    until = time.monotonic() + START_TIMEOUT
    while not _is_ready(port):
        if process.poll() is not None or time.monotonic() > until:
            raise LoadError(f"{name} is not ready: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").is_success
    except httpx.TransportError:
        return False


def free_ports(number: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# In the process of a served bundle


async def _serve(bundle: str, options: ServeOptions) -> None:
    async with Server(open_bundle(bundle), options) as server:
        freeze_modules()
        tell(f"{READY} {server.url}")
        async for line in await commands():
            if line == BEGIN_FAULTS:
                server.deployment.begin_faults()
            elif line == BUSY:
                tell(f"{sum(server.deployment.frontend.busy_seconds().values()):.6f}")
            elif line == LAG:
                tell(f"{server.deployment.frontend.scheduler.process_load.mean_lag:.6f}")
            elif line == GRPC:
                tell(server.grpc_url or "")


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[2], type=ServeOptions)
    run_child(lambda: uvloop.run(_serve(sys.argv[1], given)))
