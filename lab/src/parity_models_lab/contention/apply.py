"""The contention of a setting for a real server and its workers, while a context lasts.

    async with AsyncExitStack() as stack:
        contention = stack.enter_context(contended(setting, seed))
        options = replace(options, placements=contention.placements)
        async with served(bundle, options, contention.server_prefix) as server:
            contention.begin()

What slows workers from within (service times, pauses, another tenant, kills) is in the server's own
fault plan.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from parity_models.serving.engine import Placement
from parity_models_lab.contention.network import FRONTEND_ADDRESS, enter, shuffling, star
from parity_models_lab.contention.processor import hogging, quota
from parity_models_lab.latency.setting import SLOWED, Setting


@dataclass(frozen=True)
class Contended:
    """Contention that is set up.

    The server's i-th instance belongs at the i-th of `placements`. `server_prefix` must come before
    the server's command, and `prefix` before those of its clients: only they reach the workers and
    the server. `begin` starts the contention; to be called once.
    """

    server_prefix: tuple[str, ...]
    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]
    begin: Callable[[], None]


@contextmanager
def contended(setting: Setting, seed: int) -> Iterator[Contended]:
    """Make a setting's contention, of which nothing is left at the end of the context.

    Raises ContentionError if the network, or a quota, cannot be made here.
    """
    workers, cores = range(setting.all_instances), sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        network = setting.network
        machines = stack.enter_context(star(network, len(workers))) if network else None
        hogs = stack.enter_context(hogging(setting.hogs, cores, seed)) if setting.hogs else None

        cores_time = SLOWED * setting.speed if 0 < setting.speed < 1 else None
        slowed = stack.enter_context(quota(cores_time)) if cores_time else None

        def place(worker: int) -> Placement:
            prefix = enter(machines.machines[worker]) if machines else ()
            if hogs:
                prefix += ("taskset", "--cpu-list", str(cores[worker % len(cores)]))
            node = str(worker % setting.nodes) if setting.nodes else None
            return Placement(prefix, FRONTEND_ADDRESS if machines else None, node)

        def begin() -> None:
            start = time.monotonic()
            if hogs:
                hogs(start)
            if slowed:
                slowed.begin()
            if network and machines:
                stack.enter_context(shuffling(network, machines, seed, start))

        prefix = enter(machines.frontend) if machines else ()
        enter_group = slowed.prefix if slowed else ()
        yield Contended(enter_group + prefix, prefix, tuple(map(place, workers)), begin)
