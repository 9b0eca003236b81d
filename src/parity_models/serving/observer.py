"""Who is told what a server does, as it does it."""

from collections.abc import Collection, Mapping, Sequence

from parity_models.scheduling import Action, Decode, Encode, Run, Verify


class Observer:
    """Is told of events and of the scheduler's actions, with their times (monotonic, in seconds).

    By default it takes no notice. It is told by the thread that serves, so it must be quick.
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

    def refused(self, now: float, queries: Collection[int]) -> None:
        """What a stand-in says to these queries may not be given."""

    def spares(self, unit: Run | Verify) -> bool:
        """Shall this unit, which is to be cancelled, run on, so that its end is seen?"""
        return False

    def headers(self, unit: Run) -> Mapping[str, str]:
        """What is to be said, as headers, to another server that runs this unit."""
        return {}
