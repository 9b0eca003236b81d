"""Observers: hear what a server does, as it does it."""

import logging
from collections.abc import Collection, Mapping, Sequence

from parity_models.roles import Source
from parity_models.scheduling import Action, Decode, Encode, Run, Verify
from parity_models.serving.metrics import Metrics

_log = logging.getLogger(__name__)


class Observer:
    """Hears of events and of the scheduler's actions, with their times (monotonic, in seconds).

    Each method does nothing by default. They run on the thread that serves, so they must be quick.
    """

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        """The scheduler has these actions carried out, from now on."""

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        """An instance is up."""

    def instance_left(self, now: float, instance: str, why: str) -> None:
        """An instance is gone, and its unit with it, of which `unit_ended` has told."""

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""

    def encoded(self, began: float, ended: float, action: Encode) -> None:
        """The parity queries of a group have been made, in this time."""

    def decoded(self, began: float, ended: float, action: Decode) -> None:
        """Predictions of a group have been reconstructed, in this time."""

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        """The stand-in with this source may not answer these queries."""

    def headers(self, unit: Run) -> Mapping[str, str]:
        """Return headers for the request that has another server run this unit."""
        return {}


class Observers:
    """Several observers. An exception in one affects neither the others nor the server: it is
    counted, and logged the first time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.all: list[Observer] = []
        self._at_fault: set[Observer] = set()

    def add(self, observer: Observer) -> None:
        """Tell this one, too, from now on."""
        self.all.append(observer)

    def tell(self, event: str, *about: object, **more: object) -> None:
        """Call the method `event` of each observer."""
        for each in self.all:
            self._call(each, event, *about, **more)

    def headers(self, unit: Run) -> dict[str, str]:
        """Return the headers of all observers."""
        said: dict[str, str] = {}
        for each in self.all:
            said |= self._call(each, "headers", unit) or {}
        return said

    def _call(
        self, observer: Observer, event: str, *about: object, **more: object
    ) -> Mapping[str, str] | None:
        try:
            said: Mapping[str, str] | None = getattr(observer, event)(*about, **more)
            return said
        except Exception:
            self._metrics.observer_errors.inc()
            if observer not in self._at_fault:
                self._at_fault.add(observer)
                _log.exception("%s failed; queries are unaffected", type(observer).__name__)
            return None
