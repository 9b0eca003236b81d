"""A load from processes of its own, where nothing that its caller does disturbs their clocks.

Each takes its turn of the requests of one schedule, and all start it at the same time of the
clock that a machine's processes share. They end when the caller does.
"""

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
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
PROGRESS = re.compile(r"(\d+) (\d+)")
"""The messages of a generator process. PROGRESS has two numbers: its queries that were due so far,
and those of them that failed. Any other message is the error that ends the process."""
REPORT_EVERY = 0.5
"""Seconds between two messages of progress."""


async def offer_load_from_own_process(
    spec: LoadSpec,
    started: Callable[[], None],
    prefix: Sequence[str] = (),
    *,
    stop: asyncio.Event | None = None,
    credentials: Credentials = ANONYMOUS,
) -> LoadResult:
    """Like `offer_load`, from `spec.processes` new processes, gone when this returns or raises.

    Their commands begin with `prefix`. A server is shown the `credentials`. Once `stop` is set no
    more queries are sent, and the result has those that were.
    """
    with TemporaryDirectory(prefix="parm-load-") as folder:
        spec_path = Path(folder, "spec.json")
        spec_path.write_bytes(msgspec.json.encode(spec))
        results = [Path(folder, f"{turn}.npz") for turn in range(spec.processes)]
        async with AsyncExitStack() as stack:
            commands = [
                (*prefix, sys.executable, "-m", __package__, str(spec_path), str(result), str(turn))
                for turn, result in enumerate(results)
            ]
            children = await _start(commands, stack, credentials)
            await _run(children, spec, started, stop or asyncio.Event())
        return LoadResult.merge([LoadResult.load(result) for result in results])


async def _start(
    commands: Sequence[Sequence[str]], stack: AsyncExitStack, credentials: Credentials
) -> list[Child]:
    """Start all generators at once; they are ready, and end with the `stack`."""
    environment = credentials.environment
    starting = (stack.enter_async_context(child(command, environment)) for command in commands)
    # All are waited for, whatever becomes of one, so that none is left behind.
    children = []
    for generator in await asyncio.gather(*starting, return_exceptions=True):
        if isinstance(generator, BaseException):
            raise generator
        if generator.message != READY:
            raise await generator.failure(LoadError)
        children.append(generator)
    return children


async def _run(
    children: Sequence[Child], spec: LoadSpec, started: Callable[[], None], stop: asyncio.Event
) -> None:
    """Let the generators begin, and listen to them until they are done."""
    total = spec.requests * spec.batch
    with Progress(console=Console(stderr=True), refresh_per_second=1 / REPORT_EVERY) as bar:
        listening = _Listening(started, bar, total)
        start = time.monotonic() + LEAD
        for generator in children:
            generator.tell(f"{start!r}\n".encode())
        stopping = asyncio.create_task(_stop(children, stop))
        try:
            await asyncio.gather(*map(listening.listen, children))
        finally:
            stopping.cancel()


async def _stop(children: Sequence[Child], stop: asyncio.Event) -> None:
    await stop.wait()
    for generator in children:
        generator.end_input()


class _Listening:
    """Collects the generators' messages while they work."""

    def __init__(self, started: Callable[[], None], bar: Progress, total: int) -> None:
        self._started: Callable[[], None] | None = started
        self._bar = bar
        self._task = bar.add_task("queries", total=total)
        self._progress: dict[Child, tuple[int, int]] = {}

    async def listen(self, generator: Child) -> None:
        why = ""
        async for line in generator.lines():
            if line == STARTED:
                if self._started is not None:
                    self._started()
                    self._started = None
            elif progress := PROGRESS.fullmatch(line):
                self._progress[generator] = int(progress[1]), int(progress[2])
                self._show()
            else:
                why = line
        code = await generator.wait()
        if code != 0:
            raise LoadError(why or f"the load stopped with exit code {code}")

    def _show(self) -> None:
        due, failed = map(sum, zip(*self._progress.values(), strict=True))
        description = f"queries, {failed:,} errors" if failed else "queries"
        self._bar.update(self._task, completed=due, description=description)
