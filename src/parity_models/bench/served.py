"""A bundle served from a process of its own, as by `parm serve`, with its faults on command.

The process serves until its standard input ends, so that it cannot outlive whoever started it.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from parity_models.bench.child import USERS_MISTAKE, Child, child
from parity_models.errors import ParityModelsError, UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.server import ServeOptions, Server

BEGIN_FAULTS = b"begin faults\n"


class _Spec(msgspec.Struct):
    bundle: str
    options: ServeOptions


@dataclass(frozen=True)
class Served:
    """A server that is up."""

    _process: Child

    @property
    def url(self) -> str:
        return self._process.message

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def begin_faults(self) -> None:
        """Start the clock of the server's fault plan."""
        self._process.tell(BEGIN_FAULTS)


@asynccontextmanager
async def served(
    bundle: Path, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Served]:
    """Serve `bundle` while the context lasts, by a command that begins with `prefix`.

    Raises UserError for options that do not fit it, ServingError if the server does not start.
    """
    spec = msgspec.json.encode(_Spec(str(bundle), options)).decode()
    async with child((*prefix, sys.executable, "-m", __name__, spec)) as server:
        if not server.message.startswith("http"):
            raise await server.failure(UserError)
        yield Served(server)


async def _serve(spec: _Spec) -> None:
    async with Server(open_bundle(spec.bundle), spec.options) as server:
        _tell(server.url)
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        async for line in commands:
            if line == BEGIN_FAULTS:
                server.begin_faults()


def main(spec: str) -> int:
    """Serve as the JSON `spec` says; tell the URL, or why there is none, on standard output."""
    try:
        uvloop.run(_serve(msgspec.json.decode(spec, type=_Spec)))
    except ParityModelsError as error:
        _tell(str(error))
        return USERS_MISTAKE if isinstance(error, UserError) else 1
    return 0


def _tell(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
