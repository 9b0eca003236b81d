"""A bundle served from a process of its own, as by `parm serve`, with its faults on command.

The process serves until its standard input ends, so that it cannot outlive its parent.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from parity_models.errors import ServingError, UserError
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
