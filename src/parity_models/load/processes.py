"""A load from processes of its own, where nothing that its caller does disturbs their clocks.

Each takes its turn of the requests of one schedule, and all start it at the same time of the
clock that a machine's processes share. They end when the caller does.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from parity_models.errors import LoadError
from parity_models.load.child import Child, child
from parity_models.load.generator import LEAD
from parity_models.load.result import LoadResult
from parity_models.load.spec import LoadSpec
from parity_models.serving.client import ANONYMOUS, Credentials

READY = "ready"
STARTED = "started"
"""Messages of a generator process; any other is the error that ends it."""
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
        command = (*prefix, sys.executable, "-m", __package__, str(spec_path))
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
            showing = asyncio.create_task(_show_progress(start + due, spec.batch))
            try:
                await _finish(children, started, stop or asyncio.Event())
            finally:
                showing.cancel()
        return LoadResult.merge([LoadResult.load(result) for result in results])


async def _finish(
    children: Sequence[Child], started: Callable[[], None], stop: asyncio.Event
) -> None:
    """Listen to the generators until they are done."""

    async def listen(generator: Child) -> None:
        why = ""
        async for line in generator.lines():
            if line == STARTED:
                started()
            else:
                why = line
        code = await generator.wait()
        if code != 0:
            raise LoadError(why or f"the load stopped with exit code {code}")

    async def end_on_stop() -> None:
        await stop.wait()
        for generator in children:
            generator.end_input()

    stopping = asyncio.create_task(end_on_stop())
    try:
        await asyncio.gather(*map(listen, children))
    finally:
        stopping.cancel()


async def _show_progress(due: NDArray[np.float64], batch: int) -> None:
    with Progress(console=Console(stderr=True), refresh_per_second=1 / REFRESH) as bar:
        task = bar.add_task("queries", total=len(due) * batch)
        while True:
            try:
                await asyncio.sleep(REFRESH)
            finally:  # for the last time when the load has ended
                bar.update(task, completed=int(np.searchsorted(due, time.monotonic())) * batch)
