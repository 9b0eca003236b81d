"""Under overload as much is answered in time as there is capacity for."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest

from parity_models.arrivals import poisson_arrivals
from parity_models.emulation import Uniform
from parity_models.scheduling import DEPLOYED, NoRedundancy, Policy, SchedulerConfig
from parity_models.scheduling.policies import Adaptive, Hedging, Replication, StandIns
from parity_models.simulation import FAILED, Simulation, simulate
from parity_models.simulation.simulator import Driver, Instance
from scheduling_world import code

INSTANCES, SERVICE, SECONDS, CALM = 4, 0.01, 5.0, 3.0


class Deaf(Driver):
    """Its instances cannot stop a unit that runs: a cancelled one runs to its end."""

    def _heard(self, instance: Instance) -> float:
        return inf


def goodput(policy: Policy, times: float, deadline: float, *, max_batch: int = 1) -> float:
    """The share of capacity that is answered in time.

    Queries arrive at so many times capacity for SECONDS, and at half of it for CALM seconds more,
    in which no query fails, and after a second, none waits for long.
    """
    further = 0.5
    capacity = INSTANCES * max_batch / (SERVICE * (1 + further * (max_batch - 1)))
    rush, calm = (
        poisson_arrivals(rate, round(rate * seconds), seed=0)
        for rate, seconds in ((times * capacity, SECONDS), (0.5 * capacity, CALM))
    )
    arrivals = np.concatenate([rush, rush[-1] + calm])
    simulation = Simulation(
        arrivals=arrivals,
        instances=INSTANCES,
        parity_instances=0,
        service={DEPLOYED: Uniform(0.7 * SERVICE, 1.3 * SERVICE)},
        further_rows={DEPLOYED: further},
        config=SchedulerConfig(max_batch=max_batch, deadline=deadline),
    )
    result = simulate(simulation, policy, driver=Deaf)
    after = arrivals > rush[-1] + 1
    assert (result.sources[after] != FAILED).all()
    assert np.percentile(result.latencies[after], 99) < 0.05
    in_time = (result.latencies <= deadline) & (arrivals + result.latencies <= rush[-1])
    return float(in_time.sum() / (rush[-1] * capacity))


@pytest.mark.parametrize("deadline", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("times", [1.2, 2.0, 3.0, 5.0])
def test_overload_leaves_nearly_all_of_capacity_useful(times: float, deadline: float) -> None:
    assert goodput(NoRedundancy(), times, deadline) >= (0.85 if times == 1.2 else 0.9)


@pytest.mark.parametrize("deadline", [0.1, 10.0])
@pytest.mark.parametrize("times", [1.2, 3.0])
def test_redundancy_takes_no_capacity_from_originals(times: float, deadline: float) -> None:
    adaptive = Adaptive(StandIns(code(), True))
    assert goodput(adaptive, times, deadline) >= (0.85 if times == 1.2 else 0.9)


@pytest.mark.parametrize(
    ("policy", "share"),
    [(lambda: Replication(Replication.Options(copies=2)), 0.45), (lambda: Hedging(), 0.8)],
)
def test_copies_are_counted(policy: Callable[[], Policy], share: float) -> None:
    assert goodput(policy(), 3.0, 1.0) >= share


def test_batches_are_counted() -> None:
    assert goodput(NoRedundancy(), 3.0, 1.0, max_batch=8) >= 0.9


def test_slow_models_are_not_refused_for_a_queue_that_is_short_for_them() -> None:
    simulation = Simulation(
        arrivals=poisson_arrivals(0.8 * INSTANCES, 640, seed=0),
        instances=INSTANCES,
        parity_instances=0,
        service={DEPLOYED: Uniform(0.7, 1.3)},
        config=SchedulerConfig(deadline=60.0),
    )
    assert (simulate(simulation, NoRedundancy()).sources != FAILED).all()
