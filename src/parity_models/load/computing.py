"""How long processes compute: what a load costs a machine that runs both server and clients."""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True)
class Computed:
    """Processor time in seconds, of this process and all that it started.

    `workers` are the processes that the server started; `serving` all others: the server itself and
    its clients.
    """

    workers: float
    serving: float

    @classmethod
    def until_now(cls, server: int) -> Self:
        """From the start of all processes until now, ended ones included; `server` is a process
        id."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        everything = ended.ru_utime + ended.ru_stime + _of(psutil.Process())
        workers = 0.0
        with suppress(psutil.NoSuchProcess):  # it has ended, which its next user finds
            workers = _of(psutil.Process(server))
        return cls(workers, everything - workers)

    def since(self, earlier: Self) -> Self:
        """The processor time since then."""
        return type(self)(self.workers - earlier.workers, self.serving - earlier.serving)


def _of(parent: psutil.Process) -> float:
    """Seconds of all processes that `parent` started, directly or not, ended ones included."""
    seconds = 0.0
    for each in parent.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            seconds += times.user + times.system
            # Only Linux counts the ended children of a process.
            seconds += getattr(times, "children_user", 0.0)
            seconds += getattr(times, "children_system", 0.0)
    return seconds
