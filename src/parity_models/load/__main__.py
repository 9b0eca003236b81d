"""A generator process of a load, for `offer_load_from_own_process`."""

import asyncio
import os
import selectors
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from parity_models.load.child import commands, exit_code, tell
from parity_models.load.generator import Load, prepare_load
from parity_models.load.processes import READY, REPORT_EVERY, STARTED
from parity_models.load.spec import LoadSpec
from parity_models.serving.client import Credentials
from parity_models.serving.garbage import freeze_modules


def main(arguments: Sequence[str]) -> int:
    """SPEC.json RESULT.npz TURN: send the requests of the load that are this process's.

    Writes READY, or an error; reads the time to start; writes STARTED and its progress, or an
    error. Stops when its standard input ends.
    """
    spec_path, result_path, turn = arguments
    _take_precedence()
    spec = msgspec.json.decode(Path(spec_path).read_bytes(), type=LoadSpec)
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        generating = _generate(spec, int(turn), Path(result_path))
        return exit_code(partial(runner.run, generating), _tell)


async def _generate(spec: LoadSpec, turn: int, result: Path) -> None:
    credentials = Credentials.of_environment()
    async with prepare_load(spec, turn, spec.processes, credentials=credentials) as load:
        lines = await commands()
        _tell(READY)
        if not (start := await lines.readline()):
            return
        freeze_modules()
        load.start(float(start), partial(_tell, STARTED))
        others = (
            asyncio.create_task(_report(load)),
            asyncio.create_task(_stop_at_end(lines, load)),
        )
        await load.finish()
        for task in others:
            task.cancel()
        _tell_progress(load)
    load.result().save(result)


def _take_precedence() -> None:
    """Take a real-time priority, if the system allows it, so that requests go out on time.

    Workers that a load in process starts do not inherit it.
    """
    with suppress(AttributeError, OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


async def _stop_at_end(lines: asyncio.StreamReader, load: Load) -> None:
    await lines.read()
    load.stop()


async def _report(load: Load) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY)
        _tell_progress(load)


def _tell_progress(load: Load) -> None:
    _tell(f"{load.due_so_far} {load.failed}")


def _tell(message: str) -> None:
    # The caller may have gone.
    with suppress(BrokenPipeError):
        tell(message)


def _precise_loop() -> asyncio.AbstractEventLoop:
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
