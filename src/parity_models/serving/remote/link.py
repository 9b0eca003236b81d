"""An upstream as the remote engine has it: in use or out of it, busy or not, and its units."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from parity_models.scheduling.health import SHORT_REST
from parity_models.serving.backoff import Backoff
from parity_models.serving.remote.upstream import (
    BusyError,
    Fault,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
)

MIN_REST, MAX_REST = 0.05, SHORT_REST
"""Seconds for which a busy upstream is left alone: at least, and at most."""

LONG_REST = 60.0
"""Seconds for which it may ask to be left alone, where others are there meanwhile."""

FORGIVEN = 60.0
"""Seconds without a recycled slot after which the next one is away for as short as the first."""

SILENT = 1.0
"""Seconds of units that were cancelled, and none that it answered, after which it is checked."""

LOG_INTERVAL = 1.0
"""Seconds between two errors of units of one upstream that are logged."""

_log = logging.getLogger(__name__)


class Running(NamedTuple):
    """A unit that an instance has had `since` a time of the loop's, and the task that asks."""

    unit: int
    task: asyncio.Task[None]
    since: float


@dataclass(eq=False)
class Link:
    """Upstream `number`; `running` units by instance. `in_use`: it is not ejected.

    `verdict` is of its first check: what keeps it from being used for now, or None. `fault` ends
    its use. `doubted` is set where a check has to tell whose the errors of its units are, why a
    slot was recycled, or whether it would have answered units that were cancelled. Slots that are
    `away` come back after a check, from that time on.
    """

    number: int
    upstream: Upstream
    client: UpstreamClient
    models: Mapping[str, UpstreamModel]
    verdict: asyncio.Future[UpstreamError | None]
    fault: asyncio.Future[UpstreamError]
    running: dict[str, Running] = field(default_factory=dict)
    away: dict[int, float] = field(default_factory=dict)
    in_use: bool = False
    failures: int = 0
    doubted: asyncio.Event = field(default_factory=asyncio.Event)
    _silent: float = 0.0
    _busy_until: float = 0.0
    _rests_long: bool = False
    _next_rest: float = MIN_REST
    _log_from: float = 0.0
    _kept_for: Fault | None = None
    _lives: Counter[int] = field(default_factory=Counter)
    _returns: Backoff = field(default_factory=lambda: Backoff(FORGIVEN))
    _recycled: float = 0.0

    def admit(self) -> None:
        """It has passed its checks."""
        self.fault = asyncio.get_running_loop().create_future()
        self.in_use = True
        self.well()
        self.doubted.clear()
        self.away.clear()

    def eject(self, error: UpstreamError) -> None:
        self.in_use = False
        if not self.fault.done():
            self.fault.set_result(error)

    def instance(self, slot: int) -> str:
        """A name for this slot that no instance has had."""
        life = self._lives[slot]
        self._lives[slot] += 1
        return f"{self.number}.{slot}.{life}" if life else f"{self.number}.{slot}"

    def recycle(self, instance: str) -> None:
        """Keep the slot of this instance out until the upstream has passed a check."""
        now = asyncio.get_running_loop().time()
        slot = int(instance.split(".")[1])
        self.away[slot] = now + self._returns.after(now - self._recycled)
        self._recycled = now
        self.doubted.set()

    def due(self) -> list[int]:
        """The slots that are to come back, if a check lets them."""
        now = asyncio.get_running_loop().time()
        return [slot for slot, until in self.away.items() if until <= now]

    def keep(self, error: UpstreamError) -> None:
        """It stays in use in spite of a doubt."""
        if self._kept_for is not error.fault:
            self._kept_for = error.fault
            _log.warning(
                "upstream %s %s; it stays in use, as no more than half of the instances with its "
                "models are ejected for that",
                self.upstream.url,
                error,
            )

    def well(self) -> None:
        """It has run a unit, or passed its checks."""
        self.failures = 0
        self._silent = 0.0
        self._next_rest = MIN_REST
        self._kept_for = None

    def cancelled(self, instance: str) -> None:
        """End the instance's unit, which is no longer needed. An upstream that hangs has all of
        its units cancelled before any of them takes too long, so now and then it is checked."""
        running = self.running.pop(instance)
        running.task.cancel()
        self._silent += asyncio.get_running_loop().time() - running.since
        if self._silent >= SILENT:
            self._silent = 0.0
            self.doubted.set()

    def failed(self, instance: str, error: Exception) -> str:
        """Log what a unit came to; returns what clients may know of it."""
        now = asyncio.get_running_loop().time()
        if now >= self._log_from:
            self._log_from = now + LOG_INTERVAL
            _log.warning("upstream %s, instance %s: %s", self.upstream.url, instance, error)
        return f"instance {instance} answered with an error, which the server's log has"

    def rest(self) -> float:
        """For how many seconds from now the upstream is to be left alone; 0 if it is not."""
        return max(0.0, self._busy_until - asyncio.get_running_loop().time())

    @property
    def is_there(self) -> bool:
        """Whether it is in use, and takes units within MAX_REST."""
        return self.in_use and not (self._rests_long and self.rest())

    def turned_away(self, error: BusyError, *, is_spared: bool) -> float:
        """Leave the upstream alone as long as it asks for, for MIN_REST at least and MAX_REST at
        most, or LONG_REST if it `is_spared`; where it does not say, for twice as long as the last
        time. Returns the seconds from now."""
        if not self.rest():
            self._next_rest, rest = min(2 * self._next_rest, MAX_REST), self._next_rest
            if error.after is not None:
                longest = LONG_REST if is_spared else MAX_REST
                rest = min(max(error.after, MIN_REST), longest)
            self._rests_long = rest > MAX_REST
            self._busy_until = asyncio.get_running_loop().time() + rest
        if not error.certain:
            self.doubted.set()
        return max(self.rest(), 1e-3)


def check_enough(links: Sequence[Link], verdicts: Sequence[UpstreamError | None]) -> None:
    """Raises UpstreamError if there is a role that no upstream in use runs."""
    in_use = [link for link, away in zip(links, verdicts, strict=True) if away is None]
    missing = _roles(links) - _roles(in_use)
    for link, away in zip(links, verdicts, strict=True):
        if away is not None and missing & link.upstream.roles:
            role = min(missing & link.upstream.roles)
            text = f"no upstream that runs {role} is there: {link.upstream.url} {away}"
            raise UpstreamError(away.fault, text)


def is_spared(link: Link, links: Iterable[Link], by_instance: Iterable[Link]) -> bool:
    """Return whether half of the instances of each role would remain without this upstream."""
    there = [each for each in by_instance if each.is_there]
    if link not in there:
        return True
    for role in link.upstream.roles:
        alike = sum(each.upstream.concurrency for each in links if role in each.upstream.roles)
        left = sum(role in each.upstream.roles for each in there if each is not link)
        if 2 * left < alike:
            return False
    return True


def _roles(links: Sequence[Link]) -> frozenset[str]:
    return frozenset[str]().union(*(link.upstream.roles for link in links))


def fault_of(url: str, error: Exception) -> UpstreamError:
    """Return the fault of an upstream that `error` shows; log an unforeseen error."""
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, BusyError):
        return UpstreamError(Fault.NOT_READY, f"cannot be checked: it {error}")
    _log.error("upstream %s made something fail that should not", url, exc_info=error)
    try:
        said = repr(error)
    except Exception:  # supervision does not end by what an error says of itself
        said = type(error).__name__
    return UpstreamError(Fault.GARBAGE, f"made something fail that should not: {said}")
