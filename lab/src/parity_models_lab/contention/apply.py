"""Contention for a server and its workers, while a context lasts.

    async with contended(plan, 18, bundle) as contention:
        options = replace(options, placements=contention.placements)
        async with served(bundle, options, contention.prefix) as server:
            contention.begin(server.pid)

Kills are part of the server's own fault plan; so are service times, if they are emulated.
"""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from parity_models.errors import ContentionError
from parity_models.load.child import Child, child
from parity_models.serving.engine import Placement
from parity_models_lab.contention.plan import Contention
from parity_models_lab.contention.process import Begin, Ready, Spec


@dataclass(frozen=True)
class Contended:
    """Contention that is set up, and begins when it is told to.

    The server's i-th instance belongs at the i-th of `placements`. `prefix` must come before
    the commands of the server and of whoever asks it: only they reach the workers and it.
    """

    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]
    _process: Child

    def begin(self, server: int) -> None:
        """Let the contention's time begin now, for the server with this process id; once."""
        begin = Begin(time.monotonic(), server)
        self._process.tell(msgspec.json.encode(begin) + b"\n")


@asynccontextmanager
async def contended(plan: Contention, workers: int, bundle: Path) -> AsyncIterator[Contended]:
    """Make the contention of `plan` for a server of `bundle` with so many workers.

    The server is to be started, and stopped again, while the context lasts. At its end, however
    it comes, nothing is left. Raises ContentionError if the plan cannot be carried out here.
    """
    spec = msgspec.json.encode(Spec(plan, workers, str(bundle.resolve()))).decode()
    module = "parity_models_lab.contention.process"
    async with child((sys.executable, "-m", module, spec)) as process:
        try:
            ready = msgspec.json.decode(process.message, type=Ready)
        except msgspec.DecodeError:
            raise await process.failure(ContentionError) from None
        yield Contended(ready.prefix, ready.placements, process)
