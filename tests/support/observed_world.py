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
        lost: Run | Verify | None = self.running.get(instance) or self.unreported.get(instance)
        lost = lost or self.verifying.get(instance)
        if lost is not None:
            self.observer.unit_ended(self.now, lost, finished=False)
        self.observer.instance_left(self.now, instance, "is gone")
        super().leave(instance)

    def report(self, instance: str) -> None:
        self.observer.unit_ended(self.now, self.unreported[instance], finished=True)
        super().report(instance)

    def fail(self, instance: str) -> None:
        self.observer.unit_ended(self.now, self.running[instance], finished=False)
        super().fail(instance)

    def verify(self, instance: str, *, right: bool = True, answer: int = 0) -> None:
        self.observer.unit_ended(self.now, self.verifying[instance], finished=True)
        super().verify(instance, right=right, answer=answer)

    def fail_to_verify(self, instance: str) -> None:
        self.observer.unit_ended(self.now, self.verifying[instance], finished=False)
        super().fail_to_verify(instance)

    def turn_away_golden(self, instance: str, seconds: float) -> None:
        self.observer.unit_ended(self.now, self.verifying[instance], finished=False)
        super().turn_away_golden(instance, seconds)

    def turn_away(self, instance: str, seconds: float) -> None:
        self.observer.unit_ended(self.now, self.running[instance], finished=False)
        super().turn_away(instance, seconds)


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
