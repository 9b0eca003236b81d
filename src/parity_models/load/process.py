"""A load from its own process, where its caller's work does not disturb its clock.

A child process writes a line when it is ready, or the reason why it is not. It ends when its
standard input does, so that it cannot outlive its parent.
"""

import asyncio
import os
import selectors
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError, ParityModelsError, ServingError
from parity_models.load.generator import LEAD, prepare_load
from parity_models.load.result import LoadResult
from parity_models.load.spec import LoadSpec
from parity_models.progress import Progress, progress_bars
from parity_models.serving.garbage import freeze_modules

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

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines that the child writes after the first, until it ends."""
        async for line in self._output:
            yield line.decode().strip()


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
                with suppress(ProcessLookupError):
                    os.kill(process.pid, SIGKILL)
            await process.wait()


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
    spec: LoadSpec,
    started: Callable[[], None] | None = None,
    prefix: Sequence[str] = (),
    *,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Offer a load from a new process, which has ended when this returns or raises.

    Args:
        spec: The load.
        started: Called when the first counted query is due.
        prefix: The beginning of the process's command.
        stop: Ends the load once it is set; the result has the queries sent until then.

    Returns:
        The outcome of every counted query.

    Raises:
        LoadError: The server or its model cannot be found, or the queries do not fit it.
    """
    due = spec.due
    with TemporaryDirectory(prefix="parm-load-") as folder:
        spec_path, result = Path(folder, "spec.json"), Path(folder, "result.npz")
        spec_path.write_bytes(msgspec.json.encode(spec))
        program = f"from {__name__} import main; main()"
        command = (*prefix, sys.executable, "-c", program, str(spec_path), str(result))
        async with child(command, LoadError) as generator:
            start = time.monotonic() + LEAD
            others: list[asyncio.Task[Any]]
            others = [asyncio.create_task(_show_progress(start + due, spec.batch))]
            if stop is not None:
                others.append(asyncio.create_task(stop.wait()))
                others[-1].add_done_callback(lambda _: generator.end_input())
            try:
                await _listen(generator, started)
            finally:
                for task in others:
                    task.cancel()
        return LoadResult.load(result)


async def _listen(generator: Child, started: Callable[[], None] | None) -> None:
    """Wait until the generator is done."""
    why = ""
    async for line in generator.lines():
        if line == STARTED and started is not None:
            started()
        elif line != STARTED:
            why = line
    code = await generator.wait()
    if code != 0:
        raise LoadError(why or f"the load stopped with exit code {code}")


async def _show_progress(due: NDArray[np.float64], batch: int) -> None:
    with progress_bars() as bars:
        while True:
            await asyncio.sleep(0.5)
            sent = int(np.searchsorted(due, time.monotonic())) * batch
            bars.on_progress(Progress("queries", sent, len(due) * batch))


# In a generator process


async def _generate(spec: LoadSpec, result: Path) -> None:
    """Send the requests of the load until standard input ends. Writes READY, and STARTED."""
    async with prepare_load(spec) as load:
        lines = await commands()
        freeze_modules()

        async def stop_at_end() -> None:
            await lines.read()
            load.stop()

        tell(READY)
        load.start(asyncio.get_running_loop().time() + LEAD, lambda: tell(STARTED))
        stopping = asyncio.create_task(stop_at_end())
        await load.finish()
        stopping.cancel()
    load.result().save(result)


def main() -> None:
    """Run a generator process: SPEC.json RESULT.npz."""
    spec_path, result = map(Path, sys.argv[1:])
    # Requests go out on time with a real-time priority, if the system allows it. Workers that a
    # load in process starts do not inherit it.
    with suppress(AttributeError, OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    spec = msgspec.json.decode(spec_path.read_bytes(), type=LoadSpec)
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        generating = _generate(spec, result)
        run_child(lambda: runner.run(generating))
