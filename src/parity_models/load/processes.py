"""A load from processes of its own, where nothing that its caller does disturbs their clocks.

Each takes its turn of the requests of one schedule, and all start it at the same time of the
clock that a machine's processes share. They end when the caller does.
"""

import asyncio
import os
import selectors
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.load.child import Child, child, commands, exit_code, tell
from parity_models.load.generator import LEAD, prepare_load
from parity_models.load.result import LoadResult
from parity_models.load.spec import LoadSpec
from parity_models.serving.client import ANONYMOUS, Credentials
from parity_models.serving.garbage import freeze_modules

READY = "ready"
STARTED = "started"
"""Messages of a generator process; any other is the error that ends it."""
GENERATE = f"from {__name__} import main; main()"
"""The program of a generator process."""
REFRESH = 0.5
"""Seconds between two updates of the progress bar."""


async def offer_load_from_own_process(
    spec: LoadSpec,
    started: Callable[[], None] = lambda: None,
    prefix: Sequence[str] = (),
    *,
    stop: asyncio.Event | None = None,
    credentials: Credentials = ANONYMOUS,
) -> LoadResult:
    """Offer a load from `spec.processes` new processes, gone when this returns or raises.

    Args:
        spec: The load.
        started: Called when the first counted query is due.
        prefix: What the processes' commands begin with.
        stop: Ends the load once it is set; the result has the queries sent until then.
        credentials: Shown to the server.

    Returns:
        The outcome of every counted query.

    Raises:
        LoadError: The server or its model cannot be found, or the queries do not fit it.

    """
    due = spec.due
    with TemporaryDirectory(prefix="parm-load-") as folder:
        spec_path = Path(folder, "spec.json")
        spec_path.write_bytes(msgspec.json.encode(spec))
        results = [Path(folder, f"{turn}.npz") for turn in range(spec.processes)]
        command = (*prefix, sys.executable, "-c", GENERATE, str(spec_path))
        async with AsyncExitStack() as stack:
            starting = (
                stack.enter_async_context(
                    child((*command, str(result), str(turn)), credentials.environment)
                )
                for turn, result in enumerate(results)
            )
            children = []
            # All are waited for, whatever becomes of one, so that none is left behind.
            for generator in await asyncio.gather(*starting, return_exceptions=True):
                if isinstance(generator, BaseException):
                    raise generator
                if generator.message != READY:
                    raise await generator.failure(LoadError)
                children.append(generator)
            start = time.monotonic() + LEAD
            for generator in children:
                generator.tell(f"{start!r}\n".encode())
            others = [asyncio.create_task(_show_progress(start + due, spec.batch))]
            if stop is not None:
                others.append(asyncio.create_task(_end_on(stop, children)))
            try:
                await asyncio.gather(*(_listen(generator, started) for generator in children))
            finally:
                for task in others:
                    task.cancel()
        return LoadResult.merge([LoadResult.load(result) for result in results])


async def _listen(generator: Child, started: Callable[[], None]) -> None:
    """Wait until the generator is done."""
    why = ""
    async for line in generator.lines():
        if line == STARTED:
            started()
        else:
            why = line
    code = await generator.wait()
    if code != 0:
        raise LoadError(why or f"the load stopped with exit code {code}")


async def _end_on(stop: asyncio.Event, children: Sequence[Child]) -> None:
    await stop.wait()
    for generator in children:
        generator.end_input()


async def _show_progress(due: NDArray[np.float64], batch: int) -> None:
    # Only now: generators need no rich.
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), refresh_per_second=1 / REFRESH) as bar:
        task = bar.add_task("queries", total=len(due) * batch)
        while True:
            try:
                await asyncio.sleep(REFRESH)
            finally:  # for the last time when the load has ended
                bar.update(task, completed=int(np.searchsorted(due, time.monotonic())) * batch)


# In a generator process


async def _generate(spec: LoadSpec, result: Path, turn: int) -> None:
    """Send the requests of the load that are this process's, until its standard input ends.

    Writes READY; reads the time to start; writes STARTED.
    """
    credentials = Credentials.of_environment()
    async with prepare_load(spec, turn, spec.processes, credentials=credentials) as load:
        lines = await commands()
        _tell(READY)
        if not (start := await lines.readline()):
            return
        freeze_modules()

        async def stop_at_end() -> None:
            await lines.read()
            load.stop()

        load.start(float(start), lambda: _tell(STARTED))
        stopping = asyncio.create_task(stop_at_end())
        await load.finish()
        stopping.cancel()
    load.result().save(result)


def _tell(message: str) -> None:
    # The caller may have gone.
    with suppress(BrokenPipeError):
        tell(message)


def main() -> None:
    """Run a generator process: SPEC.json RESULT.npz TURN."""
    spec_path, result, turn = sys.argv[1:]
    # Requests go out on time with a real-time priority, if the system allows it. Workers that a
    # load in process starts do not inherit it.
    with suppress(AttributeError, OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    spec = msgspec.json.decode(Path(spec_path).read_bytes(), type=LoadSpec)
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        generating = _generate(spec, Path(result), int(turn))
        sys.exit(exit_code(lambda: runner.run(generating), _tell))
