"""What runs models for the frontend: an engine, and who listens to it.

An engine keeps a number of instances up and runs units on them. What to run where is not its
business: it does as it is told and reports what happened.

- Instances are told apart by ids that are never used twice: an instance that fails and is
  replaced is one that left and another that joined.
- An instance has one unit at a time; the next may come once it is reported finished or failed.
- Every unit is reported once, unless its instance leaves: then nothing more is heard of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class EngineListener(Protocol):
    """Is told what happens to instances and units, always on the thread of the event loop."""

    def instance_joined(
        self, instance: str, works: frozenset[str], node: str | None = None
    ) -> None:
        """The instance is warm and idle, and runs these works (deployed, parity-0, ...).

        `node` is the same for instances that are slow or gone together, as on one machine.
        """

    def instance_left(self, instance: str, why: str) -> None:
        """The instance is gone, and the unit it had with it; `why` is for the log alone."""

    def unit_finished(self, unit: int, outputs: NDArray[Any]) -> None:
        """The unit's outputs are here: (rows, *output shape), in the order of its rows.

        They are not to be written to.
        """

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        """The unit has no outputs, its instance is fine; `detail` is for people, clients included.

        `busy`: the instance has turned it away, as it has enough to do, and takes none for so many
        seconds. That says nothing against either of them.
        """


class Engine(Protocol):
    """Instances of models to run units on. An engine is started once and stopped once."""

    async def start(self, works: Sequence[frozenset[str]], listener: EngineListener) -> None:
        """Start an instance for each of `works`; returns when all of them have joined.

        Raises ServingError, with nothing left running, if one cannot be had.
        """

    def run(self, instance: str, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> None:
        """Run `work` over `rows`, as one batch; never blocks.

        The rows are not copied: they must stay as they are until the unit is reported. A unit
        for an instance that is gone is ignored, as its listener knows or is about to hear.
        """

    def cancel(self, instance: str, unit: int) -> None:
        """Nobody needs the unit any more: end it early if that can be done.

        It is reported all the same, as finished or as failed.
        """

    def recycle(self, instance: str, why: str) -> None:
        """End the instance, and its unit with it, and have another in its place if that can be.

        It leaves, which is reported; nothing is reported of its unit. One that is gone is ignored.
        """

    def running(self) -> Mapping[str, int | None]:
        """The unit of each instance that has joined and not left; None: it is idle."""

    @property
    def tolerance(self) -> float:
        """How far an output may be from that of the same model in this process, as a share of the
        largest value: room for other hardware and precisions, not for other weights."""

    async def stop(self) -> None:
        """Stop all instances and leave nothing behind; the listener hears nothing more."""
