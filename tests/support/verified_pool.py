"""Pools of instances that answer golden queries."""

from parity_models.scheduling import NoRedundancy, Scheduler, SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch, SingleQueue
from scheduling_world import ORIGINALS, World


def pool(
    instances: int = 2, verify_every: int = 3, rule: type[Dispatch] = SingleQueue, batch: int = 1
) -> World:
    config = SchedulerConfig(max_batch=batch, verify_every=verify_every)
    world = World(Scheduler(NoRedundancy(), config, rule()), max_batch=batch)
    for i in range(instances):
        world.join(f"{i}", ORIGINALS)
    return world


def verify_all(world: World) -> None:
    while world.verifying:
        world.verify(next(iter(world.verifying)))
