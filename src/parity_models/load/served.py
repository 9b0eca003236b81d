"""A bundle served from a process of its own, as by `parm serve`, with its faults on command.

The process serves until its standard input ends, so that it cannot outlive its parent.
"""

import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from parity_models.errors import ServingError, UserError
from parity_models.load.child import Child, child, commands, exit_code, tell
from parity_models.models.bundle import open_bundle
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.server import ServeOptions, Server

BEGIN_FAULTS = b"begin faults\n"
BUSY = b"busy\n"
LAG = b"lag\n"


class ServeSpec(msgspec.Struct):
    """The bundle and options to serve; `allow_code`: see `open_bundle`."""

    bundle: str
    options: ServeOptions
    allow_code: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Served:
    """A server that is up; `instances` is the process that takes their faults."""

    _process: Child
    instances: Child

    @property
    def url(self) -> str:
        return self._process.message

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def begin_faults(self) -> None:
        """Start the clock of the server's fault plan."""
        self.instances.tell(BEGIN_FAULTS)

    async def busy_seconds(self) -> float:
        """How long instances have been busy, all together."""
        return await self._ask(BUSY)

    async def mean_lag(self) -> float:
        """How long reports and timers waited for the server's process, in seconds on average."""
        return await self._ask(LAG)

    async def _ask(self, question: bytes) -> float:
        answer = await self._process.ask(question)
        if not answer:
            raise ServingError("the server has ended")
        return float(answer)


@asynccontextmanager
async def served(
    bundle: Path,
    options: ServeOptions,
    prefix: Sequence[str] = (),
    module: str = __name__,
    allow_code: frozenset[str] = frozenset(),
) -> AsyncIterator[Served]:
    """Serve `bundle` while the context lasts, by a command that begins with `prefix` and runs the
    main function of `module`. `allow_code`: see `open_bundle`.

    Raises UserError for options that do not fit it, ServingError if the server does not start.
    """
    spec = msgspec.json.encode(ServeSpec(str(bundle), options, allow_code)).decode()
    async with child((*prefix, sys.executable, "-m", module, spec)) as server:
        if not server.message.startswith("http"):
            raise await server.failure(UserError)
        yield Served(server, server)


async def _serve(spec: ServeSpec) -> None:
    async with Server(open_bundle(spec.bundle, spec.allow_code), spec.options) as server:
        freeze_modules()
        tell(server.url)
        async for line in await commands():
            if line == BEGIN_FAULTS:
                server.begin_faults()
            elif line == BUSY:
                tell(f"{server.busy_seconds():.6f}")
            elif line == LAG:
                tell(f"{server.frontend.mean_lag:.6f}")


def main(spec: str, serve: Callable[[ServeSpec], Coroutine[None, None, None]] = _serve) -> int:
    """`serve` as the JSON `spec` says; tell the URL, or why there is none, on standard output."""
    return exit_code(lambda: uvloop.run(serve(msgspec.json.decode(spec, type=ServeSpec))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
