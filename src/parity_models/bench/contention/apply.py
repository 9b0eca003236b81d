"""Contention for a server and its workers, while a context lasts.

    async with contended(plan, 18, bundle) as contention:
        options = replace(options, placements=contention.placements)
        async with served(bundle, options, contention.prefix) as server:
            contention.begin(server.pid)

Kills are part of the server's own fault plan; so are service times, if they are emulated.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from parity_models.bench.contention.plan import Contention
from parity_models.bench.contention.process import USERS_MISTAKE, Begin, Ready, Spec
from parity_models.errors import ContentionError, ServingError
from parity_models.serving.local.placement import Placement

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
MAX_MESSAGE = 1 << 20


@dataclass(frozen=True)
class Contended:
    """Contention that is set up, and begins when it is told to.

    The server's i-th instance belongs at the i-th of `placements`. `prefix` must come before
    the commands of the server and of whoever asks it: only they reach the workers and it.
    """

    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]
    _process: asyncio.subprocess.Process

    def begin(self, server: int) -> None:
        """Let the contention's time begin now, for the server with this process id; once."""
        assert self._process.stdin is not None
        begin = Begin(time.monotonic(), server)
        self._process.stdin.write(msgspec.json.encode(begin) + b"\n")


@asynccontextmanager
async def contended(plan: Contention, workers: int, bundle: Path) -> AsyncIterator[Contended]:
    """Make the contention of `plan` for a server of `bundle` with so many workers.

    The server is to be started, and stopped again, while the context lasts. At its end, however
    it comes, nothing is left. Raises ContentionError if the plan cannot be carried out here.
    """
    spec = msgspec.json.encode(Spec(plan, workers, str(bundle.resolve())))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "parity_models.bench.contention.process", spec.decode(),
        stdin=pipe, stdout=pipe, start_new_session=True, limit=MAX_MESSAGE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT):
            message = (await process.stdout.readline()).decode().strip()
        try:
            ready = msgspec.json.decode(message, type=Ready)
        except msgspec.DecodeError:
            failure = ContentionError if await process.wait() == USERS_MISTAKE else ServingError
            raise failure(message or "the contention ended before it was ready") from None
        yield Contended(ready.prefix, ready.placements, process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
