"""Child processes of experiments, and a load from a process of its own, whose clock its caller's
work does not disturb.

A child process writes a line when it is ready, or the reason why it is not. It ends when its
standard input does, so that it cannot outlive its parent.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL, Signals
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from parity_models.errors import LoadError, ParityModelsError, ServingError
from parity_models.load.generator import offer_load, run_precisely
from parity_models.load.result import LoadResult
from parity_models.load.spec import LoadSpec

READY = "ready"
"""The first word of a child that is ready, before a space and its message; any other first line is
the error that ends it."""
STARTED = "started"
"""The message of a generator when its first counted query is due."""
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
MAX_MESSAGE = 1 << 20
"""Maximum size in bytes of a line of output."""


class Child:
    """A running child process; `message` is its message when it was ready."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.message = ""
        self.pid = process.pid
        self._input, self._output = process.stdin, process.stdout
        self.wait = process.wait
        self.end_input = process.stdin.close

    def tell(self, line: bytes) -> None:
        """Write a line, with its end, to the child's standard input."""
        self._input.write(line)

    async def ask(self, line: bytes) -> str:
        """Write a line, with its end, and return the next line that the child writes."""
        self.tell(line)
        return (await self._output.readline()).decode().strip()


@asynccontextmanager
async def child(
    command: Sequence[str], error: type[ParityModelsError] = ServingError
) -> AsyncIterator[Child]:
    """Run a command until the context ends; the context begins when the command is ready.

    Raises `error` with the child's line in place of READY, and ServingError if it writes none
    within START_TIMEOUT seconds.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, start_new_session=True, limit=MAX_MESSAGE
    )
    running = Child(process)
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = await running.ask(b"")
        except TimeoutError:
            raise ServingError(
                f"a child process was not ready within {START_TIMEOUT:g} s; the machine is too "
                "busy, or has too little memory"
            ) from None
        said, _, running.message = line.partition(" ")
        if said != READY:
            raise error(line or "the process ended before it was ready")
        yield running
    finally:
        running.end_input()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            # Process.kill would take the exit status from asyncio, which waits for it.
            if process.returncode is None:
                send_signal(process.pid, SIGKILL)
            await process.wait()


def send_signal(pid: int, number: Signals) -> None:
    """Send a signal to a process, unless it has gone, or is 0: none."""
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# In a child process


def tell(message: str) -> None:
    """Write a line to standard output at once, unless the caller has gone."""
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def run_child(do: Callable[[], object]) -> None:
    """Call `do`; write the message of an error, and exit with 1."""
    try:
        do()
    except ParityModelsError as error:
        tell(str(error))
        sys.exit(1)


async def commands() -> asyncio.StreamReader:
    """Return a reader of the lines on standard input."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    return lines


# A load in a process of its own


async def offer_load_from_own_process(
    spec: LoadSpec, started: Callable[[], object] = lambda: None, prefix: Sequence[str] = ()
) -> LoadResult:
    """Offer a load from a new process, which has ended when this returns or raises.

    Its command begins with `prefix`; `started` is called when the first counted query is due.
    Returns the outcome of every counted query. Raises LoadError if the server or its model cannot
    be found, or the queries do not fit it.
    """
    with TemporaryDirectory(prefix="parm-load-") as folder:
        result, load = Path(folder, "result.npz"), msgspec.json.encode(spec).decode()
        command = (*prefix, sys.executable, "-m", __name__, load, str(result))
        async with child(command, LoadError) as generator:
            line = await generator.ask(b"")
            if line == STARTED:
                started()
                line = await generator.ask(b"")
            code = await generator.wait()
            if code != 0:
                raise LoadError(line or f"the load stopped with exit code {code}")
        with np.load(result, allow_pickle=False) as arrays:
            return LoadResult(**arrays)


async def _generate(spec: LoadSpec) -> LoadResult:
    """Send the requests of the load until standard input ends. Writes READY, and STARTED."""
    tell(READY)
    ended = asyncio.Event()
    waiting = asyncio.ensure_future((await commands()).read())
    waiting.add_done_callback(lambda _: ended.set())
    try:
        return await offer_load(spec, lambda: tell(STARTED), stop=ended)
    finally:
        waiting.cancel()


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=LoadSpec)
    run_child(lambda: np.savez(sys.argv[2], **vars(run_precisely(_generate(given)))))
