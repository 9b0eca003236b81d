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
from parity_models.load.processes import READY, STARTED
from parity_models.load.spec import LoadSpec
from parity_models.serving.client import Credentials
from parity_models.serving.garbage import freeze_modules


def main(arguments: Sequence[str]) -> int:
    """SPEC.json RESULT.npz TURN: send the requests of the load that are this process's.

    Writes READY, or an error; reads the time to start; writes STARTED, or an error. Stops when its
    standard input ends.
    """
    spec_path, result_path, turn = arguments
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
        stopping = asyncio.create_task(_stop_at_end(lines, load))
        await load.finish()
        stopping.cancel()
    load.result().save(result)


async def _stop_at_end(lines: asyncio.StreamReader, load: Load) -> None:
    await lines.read()
    load.stop()


def _tell(message: str) -> None:
    # The caller may have gone.
    with suppress(BrokenPipeError):
        tell(message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
