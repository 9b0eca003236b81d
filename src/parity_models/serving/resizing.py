"""A server that gets more instances while it serves, or gives some up."""

import asyncio
import time
from collections.abc import Callable, Sequence

from parity_models.scheduling import Action, Scheduler
from parity_models.serving.engine import Engine

LOOK_AGAIN = 0.05
"""Seconds between two looks at whether instances that are not needed have gone."""


class Resizing:
    """Changes the number of an engine's instances; `carry_out` does what the scheduler says."""

    def __init__(
        self, engine: Engine, scheduler: Scheduler, carry_out: Callable[[Sequence[Action]], None]
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._carry_out = carry_out
        self._awaited = 0

    async def shrink_to(self, instances: int, unless: Callable[[], bool]) -> None:
        """Have so many instances, or fewer; returns when the others are gone, or `unless` says so.

        First to go are those that are not up; those that are end what they have. Raises
        ServingError if the engine does not grow.
        """
        engine = self._engine
        while not unless() and (engine.places > instances or engine.ending):
            spare = engine.places - instances
            while spare > 0 and engine.give_up_place():
                spare -= 1
                self._awaited = max(0, self._awaited - 1)
            for _ in range(spare - self._scheduler.retiring):
                self._carry_out(self._scheduler.instance_not_needed(time.monotonic()))
            await asyncio.sleep(LOOK_AGAIN)

    def grow_to(self, instances: int, roles: frozenset[str]) -> None:
        """Have so many instances, or more: further ones run `roles`, and join when they are warm.

        Raises ServingError if the engine does not grow.
        """
        while self._engine.places < instances:
            self._engine.add(roles)
            self._awaited += 1

    def came(self) -> bool:
        """An instance has joined; was it one of the further ones, as far as can be told?"""
        awaited = self._awaited > 0
        self._awaited -= awaited
        return awaited
