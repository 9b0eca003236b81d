"""A simulator that drives the very `Scheduler` that serves.

The fault plan's timeline and the arrivals depend on seeds alone, so that policies compared meet the
same load and the same faults.
"""

import gc
from collections.abc import Callable

from parity_models.scheduling import Policy
from parity_models.scheduling.dispatch import Dispatch
from parity_models.simulation.driver import Driver
from parity_models.simulation.on_cores import DriverOnCores
from parity_models.simulation.scenario import Simulation, SimulationResult

SELDOM = 100_000
"""New objects after which the garbage collector looks for cycles, of which a simulation makes next
to none. To look after 700, as usual, takes a tenth of its time."""


def simulate(
    simulation: Simulation,
    policy: Policy,
    dispatch: Dispatch | None = None,
    progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Run the simulation to its end under a policy and a dispatch rule.

    `progress` is called now and then with the number of queries that have arrived.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(SELDOM, *thresholds[1:])
    try:
        driver = Driver if simulation.cores is None else DriverOnCores
        return driver(simulation, policy, dispatch, progress).run()
    finally:
        gc.set_threshold(*thresholds)
