"""Servers of a bundle in processes of their own, with its faults on command."""

import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import uvloop

from parity_models.bundle.bundle import open_bundle
from parity_models.errors import ServingError
from parity_models.serving.client import model_path
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.server import ServeOptions, Server
from parity_models_lab.processes import READY, Child, child, commands, run_child, tell

BEGIN_FAULTS = b"begin faults\n"
"""Starts the clock of the server's fault plan."""
BUSY = b"busy\n"
"""Asks how long instances have been busy, all together."""
LAG = b"lag\n"
"""Asks how long reports and timers waited for the server's process on average."""
GRPC = b"gRPC\n"
"""Asks for the URL of gRPC."""
_WORKER = re.compile(r"parity_models\.serving\.worker|^ray::Instance")
"""The command lines of instances, among the descendants of servers."""


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


def workers(pid: int) -> list[int]:
    """Return the ids of the processes that run a server's instances."""
    found = []
    for each in processes(pid):
        with suppress(psutil.Error):
            if _WORKER.search(" ".join(each.cmdline())):
                found.append(each.pid)
    return found


def post(model: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole HTTP request for predictions of a model."""
    lines = [f"POST {model_path(model)}/infer HTTP/1.1", "Host: server"]
    headers = {**(headers or {}), "Content-Length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


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
