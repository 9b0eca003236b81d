"""A load from processes of its own, where nothing that its caller does disturbs their clocks.

Each takes its turn of the requests of one schedule, and all start it at the same time of the
clock that a machine's processes share. They end when the caller does.
"""

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from tqdm import tqdm

from parity_models.bench.child import USERS_MISTAKE, Child, child
from parity_models.bench.load.generator import LEAD, Load, prepare_load
from parity_models.bench.load.spec import LoadSpec
from parity_models.bench.load_result import LoadResult
from parity_models.errors import LoadError, ParityModelsError, UserError

READY = "ready"
STARTED = "started"
REPORT_EVERY = 0.5
"""Seconds."""


async def offer_load_from_own_process(
    spec: LoadSpec,
    started: Callable[[], None],
    prefix: Sequence[str] = (),
    *,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Like `offer_load`, from `spec.processes` new processes, gone when this returns or raises.

    Their commands begin with `prefix`. Once `stop` is set no more queries are sent, and the
    result has those that were.
    """
    with TemporaryDirectory(prefix="parm-load-") as folder:
        spec_path = Path(folder, "spec.json")
        spec_path.write_bytes(msgspec.json.encode(spec))
        results = [Path(folder, f"{turn}.npz") for turn in range(spec.processes)]
        async with AsyncExitStack() as stack:
            children = []
            for turn, result in enumerate(results):
                command = (
                    *prefix, sys.executable, "-m", __name__,
                    str(spec_path), str(result), str(turn),
                )  # fmt: skip
                generator = await stack.enter_async_context(child(command))
                if generator.message != READY:
                    raise await generator.failure(LoadError)
                children.append(generator)
            await _run(children, spec, started, stop or asyncio.Event())
        return LoadResult.merge([LoadResult.load(result) for result in results])


async def _run(
    children: Sequence[Child], spec: LoadSpec, started: Callable[[], None], stop: asyncio.Event
) -> None:
    """Let the generators begin, and listen to them until they are done."""
    total = spec.requests * spec.batch
    with tqdm(total=total, desc="queries", unit="", mininterval=REPORT_EVERY) as bar:
        listening = _Listening(started, bar)
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
    """What the generators tell while they are at work."""

    def __init__(self, started: Callable[[], None], bar: "tqdm[None]") -> None:
        self._started: Callable[[], None] | None = started
        self._bar = bar
        self._told: dict[Child, tuple[int, int]] = {}

    async def listen(self, generator: Child) -> None:
        async for line in generator.lines():
            if line == STARTED:
                if self._started is not None:
                    self._started()
                    self._started = None
            else:
                due, failed = map(int, line.split())
                self._told[generator] = due, failed
                self._show()
        code = await generator.wait()
        if code != 0:
            raise LoadError(f"the load stopped with exit code {code}")

    def _show(self) -> None:
        due, failed = map(sum, zip(*self._told.values(), strict=True))
        if failed:
            self._bar.set_postfix_str(f"{failed:,} errors", refresh=False)
        self._bar.update(due - self._bar.n)


def main(arguments: Sequence[str]) -> int:
    """SPEC.json RESULT.npz TURN: offer those requests of the load whose turn it is.

    Tells READY, or why not; is told the time to start; tells STARTED and how far it is. Stops
    when its standard input ends.
    """
    spec_path, result_path, turn = arguments
    spec = msgspec.json.decode(Path(spec_path).read_bytes(), type=LoadSpec)
    try:
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            runner.run(_generate(spec, int(turn), Path(result_path)))
    except ParityModelsError as error:
        _tell(str(error))
        return USERS_MISTAKE if isinstance(error, UserError) else 1
    return 0


async def _generate(spec: LoadSpec, turn: int, result: Path) -> None:
    async with prepare_load(spec, turn, spec.processes) as load:
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        _tell(READY)
        if not (start := await commands.readline()):
            return
        load.start(float(start), partial(_tell, STARTED))
        others = (
            asyncio.create_task(_report(load)),
            asyncio.create_task(_stop_at_end(commands, load)),
        )
        await load.finish()
        for task in others:
            task.cancel()
        _tell_progress(load)
    load.result().save(result)


async def _stop_at_end(commands: asyncio.StreamReader, load: Load) -> None:
    await commands.read()
    load.stop()


async def _report(load: Load) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY)
        _tell_progress(load)


def _tell_progress(load: Load) -> None:
    _tell(f"{load.due_so_far} {load.failed}")


def _tell(message: str) -> None:
    # Without its caller there is nobody to tell.
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def _precise_loop() -> asyncio.AbstractEventLoop:
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
