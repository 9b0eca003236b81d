"""A world that tells an observer what a driver would, and its histories."""

from collections.abc import Callable
from random import Random
from typing import Any

from histories import Setup, history, run_history
from parity_models.scheduling import Action, Policy, Run, Verify
from parity_models.serving.frontend import Observer
from scheduling_world import World


class ObservedWorld(World):
    """Tells its observer what a driver would."""

    observer: Observer

    def do(self, actions: list[Action]) -> None:
        self.observer.acted(self.now, actions)
        super().do(actions)

    def join(self, instance: str, roles: frozenset[str], node: str | None = None) -> None:
        self.observer.instance_joined(self.now, instance, roles, node)
        super().join(instance, roles, node)

    def leave(self, instance: str) -> None:
        if instance in {**self.running, **self.unreported, **self.verifying}:
            self._tell(instance, finished=False)
        self.observer.instance_left(self.now, instance, "is gone")
        super().leave(instance)

    def report(self, instance: str) -> None:
        self._tell(instance, finished=True)
        super().report(instance)

    def fail(self, instance: str, busy: float = 0.0) -> None:
        self._tell(instance, finished=False)
        super().fail(instance, busy)

    def verify(self, instance: str, *, right: bool = True, answer: int = 0) -> None:
        self._tell(instance, finished=True)
        super().verify(instance, right=right, answer=answer)

    def _tell(self, instance: str, *, finished: bool) -> None:
        """Say that the instance's unit, or golden query, has ended."""
        units: dict[str, Run | Verify] = {**self.verifying, **self.unreported, **self.running}
        self.observer.unit_ended(self.now, units[instance], finished=finished)


def observed_history(seed: int, observer: Callable[[], Observer]) -> tuple[ObservedWorld, int]:
    """A random history of a server with an observer, and how many queries a group has."""

    class Observed(Setup):
        def build(self) -> tuple[World, Policy]:
            world, policy = super().build()
            observed = ObservedWorld(world.scheduler, world.code, world.max_batch)
            observed.refuses = world.refuses
            observed.observer = observer()
            return observed, policy

    setup, steps = history(Random(seed))
    fields: dict[str, Any] = {name: getattr(setup, name) for name in Setup.__dataclass_fields__}
    world = run_history(Observed(**fields), steps)
    assert isinstance(world, ObservedWorld)
    return world, setup.code.k
