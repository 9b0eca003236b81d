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

from parity_models.errors import ParityModelsError, ServingError, UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.server import ServeOptions, Server

BEGIN_FAULTS = b"begin faults\n"
USERS_MISTAKE = 2
"""The exit code for a bundle or options that cannot be served."""
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


class _Spec(msgspec.Struct):
    bundle: str
    options: ServeOptions


@dataclass(frozen=True)
class Served:
    """A server that is up, at `url`."""

    url: str
    _process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def begin_faults(self) -> None:
        """Start the clock of the server's fault plan."""
        assert self._process.stdin is not None
        self._process.stdin.write(BEGIN_FAULTS)


@asynccontextmanager
async def served(
    bundle: Path, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Served]:
    """Serve `bundle` while the context lasts, by a command that begins with `prefix`.

    Raises UserError for options that do not fit it, ServingError if the server does not start.
    """
    spec = msgspec.json.encode(_Spec(str(bundle), options))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-m", __name__, spec.decode(), stdin=pipe, stdout=pipe,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT):
            message = (await process.stdout.readline()).decode().strip()
        if not message.startswith("http"):
            failure = UserError if await process.wait() == USERS_MISTAKE else ServingError
            raise failure(message or "the server ended before it was ready")
        yield Served(message, process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


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
