"""Which engines of one process have room on the cluster, though several start at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event

from parity_models.errors import ServingError

LOOK_AGAIN = 0.2
"""Seconds between looks at what is free while others start."""


class Room:
    """The CPUs promised to engines whose instances are not all there yet.

    Ray reserves CPUs when it places an instance, a while after it is deployed: `free`, which says
    how many are free now, counts those of an engine that starts for some of its instances or none.
    """

    def __init__(self, free: Callable[[], float]) -> None:
        self._free = free
        self._promised: list[float] = []
        self._changed = Condition()

    @contextmanager
    def promised(self, cpus: float, stopped: Event) -> Iterator[None]:
        """Inside, so many CPUs are promised: until the instances are there, or cannot be.

        What fits only if others do not take what they were promised waits until they have it or
        have failed. Raises ServingError if there is no room, or once `stopped`.
        """
        with self._changed:
            while not self._fits(cpus):
                if stopped.is_set():
                    raise ServingError("its start was ended")
                self._changed.wait(LOOK_AGAIN)
            self._promised.append(cpus)
        try:
            yield
        finally:
            with self._changed:
                self._promised.remove(cpus)
                self._changed.notify_all()

    def _fits(self, cpus: float) -> bool:
        """Does it, whatever others take? Raises ServingError if it does not fit as it is."""
        free = self._free()
        if free < cpus:
            raise ServingError(
                f"its instances reserve {cpus:g} CPUs and the cluster has {free:g} free; add "
                "nodes, unload a model, or lower --instances or --cpus-per-instance"
            )
        return cpus <= free - sum(self._promised)
