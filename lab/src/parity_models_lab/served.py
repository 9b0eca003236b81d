"""Servers in processes of their own: a bundle's, with its faults on command, and Triton.

A bundle's process serves until its standard input ends, so that it cannot outlive its parent.
"""

import os
import selectors
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import psutil
import uvloop

from parity_models.errors import LoadError, ServingError, UserError
from parity_models.load.process import Child, child, commands, exit_code, tell
from parity_models.models.bundle import open_bundle
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.server import ServeOptions, Server

BEGIN_FAULTS = b"begin faults\n"
BUSY = b"busy\n"
LAG = b"lag\n"


class ServeSpec(msgspec.Struct):
    """The bundle and options to serve."""

    bundle: str
    options: ServeOptions


@dataclass(frozen=True)
class Served:
    """A server that is up at `url`; `pid` is its process."""

    _process: Child

    @property
    def url(self) -> str:
        return self._process.message

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin_faults(self) -> None:
        """Start the clock of the server's fault plan."""
        self._process.tell(BEGIN_FAULTS)

    async def busy_seconds(self) -> float:
        """Return how long instances have been busy, all together."""
        return await self._ask(BUSY)

    async def mean_lag(self) -> float:
        """Return how long reports and timers waited for the server's process on average, in s."""
        return await self._ask(LAG)

    async def _ask(self, question: bytes) -> float:
        answer = await self._process.ask(question)
        if not answer:
            raise ServingError("the server has ended")
        return float(answer)


@asynccontextmanager
async def served(
    bundle: Path, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Served]:
    """Serve `bundle` while the context lasts, by a command that begins with `prefix`.

    Args:
        bundle: The bundle's folder.
        options: The server's options.
        prefix: What the process's command begins with.

    Raises:
        UserError: The options do not fit the bundle.
        ServingError: The server does not start.

    """
    spec = msgspec.json.encode(ServeSpec(str(bundle), options)).decode()
    async with child((*prefix, sys.executable, "-m", __name__, spec)) as server:
        if not server.message.startswith("http"):
            raise await server.failure(UserError)
        yield Served(server)


def descendants(pid: int) -> list[int]:
    """Return the process's children, theirs, and so on; without it."""
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time so far of these processes."""
    seconds = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system
    return seconds


# Triton

ROOT = Path(__file__).resolve().parents[3]


class Triton(NamedTuple):
    """A Triton that is up at these ports of this machine; `pid` is its process."""

    port: int
    grpc_port: int
    pid: int


@contextmanager
def triton(repository: Path) -> Iterator[Triton]:
    """Serve a repository of models while the context lasts.

    Raises UserError if Triton is not installed, and LoadError, with the end of its log, if it ends.
    """
    if not (ROOT / ".servers" / "triton").exists():
        raise UserError(f"{ROOT} has no Triton to compare with; run make servers there")
    port, grpc_port = free_ports(2)
    program = (str(ROOT / "tests" / "servers" / "triton.py"), str(repository))
    with tempfile.NamedTemporaryFile("w+") as log:
        process = psutil.Popen(
            [sys.executable, *program, str(port), str(grpc_port)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    raise LoadError(f"Triton ended: {Path(log.name).read_text()[-2000:]}")
                selectors.DefaultSelector().select(0.1)
            yield Triton(port, grpc_port, process.pid)
        finally:
            process.terminate()
            process.wait()


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


async def _serve(spec: ServeSpec) -> None:
    async with Server(open_bundle(spec.bundle), spec.options) as server:
        freeze_modules()
        tell(server.url)
        async for line in await commands():
            if line == BEGIN_FAULTS:
                server.deployment.begin_faults()
            elif line == BUSY:
                tell(f"{sum(server.deployment.frontend.busy_seconds().values()):.6f}")
            elif line == LAG:
                tell(f"{server.deployment.frontend.scheduler.front_door.mean_lag:.6f}")


if __name__ == "__main__":
    decoded = msgspec.json.decode(sys.argv[1], type=ServeSpec)
    sys.exit(exit_code(lambda: uvloop.run(_serve(decoded))))
