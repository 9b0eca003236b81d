"""Units that nobody needs any more, and that run on so that something is learned from them.

Most queries are answered before the output of their stand-in is here, and its unit is cancelled.
Now and then one is not: its outputs are compared with the model's predictions, so that it is known
how right the stand-in is (serving/gates.py). One at a time, as it takes an instance's time.
"""

from collections.abc import Mapping

from parity_models.scheduling.actions import DEPLOYED, Source, source_of
from parity_models.scheduling.work import Unit


class Samples:
    """Takes one in so many of the units; while the gate of their source is closed, all that can be
    had, as it is to open again soon. `running` are the units that run, by id."""

    def __init__(self, one_in: int, running: Mapping[int, Unit]) -> None:
        self._one_in = one_in
        self._running = running
        self._closed: set[Source] = set()
        self._count = 0
        self._sample: int | None = None

    def gate_turned(self, source: Source, *, is_open: bool) -> None:
        """The gate of a source has opened or closed; all are open at first."""
        if is_open:
            self._closed.discard(source)
        else:
            self._closed.add(source)

    @property
    def runs(self) -> bool:
        """Does a unit run that is to be compared?"""
        return self._sample in self._running

    def take(self, unit: Unit) -> None:
        """This unit is to be compared; none may run that is (`runs`)."""
        self._sample = unit.id

    def takes(self, unit: Unit) -> bool:
        """Shall this unit, which nobody needs any more, run on?"""
        if unit.role == DEPLOYED:
            return False
        self._count += 1
        is_due = self._count % self._one_in == 0 or source_of(unit.role) in self._closed
        if self.runs or not is_due:
            return False
        self.take(unit)
        return True
