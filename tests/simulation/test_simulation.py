"""The simulator: queueing theory where there is some, determinism, and bounded memory."""

from collections.abc import Callable
from math import factorial
from typing import Any

import msgspec
import numpy as np
import pytest

from parity_models.codes import Code, CodeSpec
from parity_models.errors import UserError
from parity_models.roles import BACKUP, DEPLOYED, SOURCES, Source
from parity_models.scheduling.policies import (
    Adaptive,
    ApproximateBackup,
    EqualResources,
    Parity,
    Policy,
    Pool,
    Replication,
    StandIns,
)
from parity_models.scheduling.race import FIRST
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import Constant, Exponential, FaultPlan, Kill, Slowdowns
from parity_models.simulation.simulation import Simulation, SimulationResult

CODE = Code(CodeSpec("stack", "separate", 2), (1,), (1,))
SERVICE = 0.02
SLOW = FaultPlan(seed=1, slowdowns=Slowdowns(mean_between=20, mean_length=1, delay=Constant(0.1)))
HALF = msgspec.structs.replace(SLOW, coverage=0.5)


def workload(load: float = 0.5, queries: int = 10_000, **changes: Any) -> Simulation:
    """12 + 6 instances under a share of the load that 12 of them could carry."""
    settings: dict[str, Any] = {
        "arrivals": poisson_arrivals(load * 12 / SERVICE, queries, seed=2),
        "instances": 12,
        "extra_instances": 6,
        "service": {DEPLOYED: Constant(SERVICE)},
        "faults": SLOW,
    }
    return Simulation(**(settings | changes))


@pytest.mark.slow
def test_waiting_is_what_erlang_says_for_exponential_service() -> None:
    servers, load = 4, 3.2
    waits = load**servers / factorial(servers) / (1 - load / servers)
    none = sum(load**n / factorial(n) for n in range(servers))
    share_waiting = waits / (none + waits)
    simulation = workload(
        arrivals=poisson_arrivals(load, 40_000, seed=3),
        instances=servers,
        extra_instances=0,
        service={DEPLOYED: Exponential(1.0)},
        faults=FaultPlan(),
        config=SchedulerConfig(deadline=1e6),
    )
    mean = np.mean(simulation.run(EqualResources()).latencies)
    assert mean == pytest.approx(1.0 + share_waiting / (servers - load), rel=0.05)


def test_each_further_row_of_a_batch_adds_its_share_to_the_time_of_the_first() -> None:
    simulation = workload(
        arrivals=np.zeros(4),
        instances=1,
        extra_instances=0,
        service={DEPLOYED: Constant(1.0)},
        faults=FaultPlan(),
        config=SchedulerConfig(max_batch=8),
        further_rows={DEPLOYED: 0.5},
    )
    result = simulation.run(EqualResources())
    # The first is run at once, by itself; the others came meanwhile.
    assert result.latencies.tolist() == [1.0, 3.0, 3.0, 3.0]
    assert (result.units, result.busy) == ({DEPLOYED: 2}, {DEPLOYED: 3.0})
    assert result.rows == {DEPLOYED: 4}


def p999(result: SimulationResult) -> float:
    return float(np.percentile(result.latencies, 99.9))


@pytest.mark.parametrize("doubt", [1e-4, 0.1])
def test_answers_carry_the_doubts_of_the_plan_within_the_budget(doubt: float) -> None:
    service = {DEPLOYED: Constant(SERVICE), BACKUP: Constant(SERVICE / 4)}
    plan = msgspec.structs.replace(SLOW, doubts=(doubt,))
    policy = Adaptive(StandIns(None, True))
    found = workload(service=service, faults=plan).run(policy)
    answered = found.sources == SOURCES.index(Source.BACKUP)
    assert answered.any()
    np.testing.assert_array_equal(found.doubts, np.where(answered, doubt, 0.0))
    assert found.doubts.sum() <= policy.differ * (len(found.doubts) + FIRST)


@pytest.mark.slow
def test_parity_shortens_the_tail_that_slow_instances_make() -> None:
    equal = workload(queries=5000).run(EqualResources())
    for policy in (
        Parity(CODE),
        Parity(CODE, Parity.Options(pool=Pool.DEDICATED)),
        Adaptive(StandIns(CODE)),
    ):
        coded = workload(queries=5000).run(policy)
        assert p999(coded) < 0.7 * p999(equal)
        if not isinstance(policy, Adaptive):  # this parity model is as slow as the model
            assert SOURCES.index(Source.RECONSTRUCTION) in coded.sources


def test_late_queries_are_helped_while_all_instances_are_busy() -> None:
    simulation = workload(
        arrivals=poisson_arrivals(0.95 * 18 / SERVICE, 4000, seed=2),
        service={DEPLOYED: Constant(SERVICE), BACKUP: Constant(SERVICE / 5)},
        config=SchedulerConfig(max_batch=8),
    )
    backed = simulation.run(Adaptive(StandIns(None, True)))
    assert p999(backed) < 0.3 * p999(simulation.run(EqualResources()))


def test_a_unit_that_nobody_waits_for_ends_once_it_is_cancelled() -> None:
    slow = FaultPlan(service_time=Constant(SERVICE), generations=(1.0, 10.0))
    two: dict[str, Any] = {
        "arrivals": np.array([0.0]),
        "instances": 1,
        "extra_instances": 1,
        "service": {DEPLOYED: Constant(0.0)},
        "overhead": 0.001,
    }
    result = workload(**two, faults=slow).run(Replication())
    assert result.latencies == pytest.approx([SERVICE + 0.001])
    assert result.busy[DEPLOYED] == pytest.approx(2 * SERVICE + 3 * 0.001)
    held = Slowdowns(mean_between=0, mean_length=1e4, delay=Constant(0.5), workers=(1,))
    faults = FaultPlan(service_time=Constant(SERVICE), slowdowns=held)
    two["arrivals"] = np.array([1.0])
    result = workload(**two, faults=faults).run(Replication())
    assert result.busy[DEPLOYED] == pytest.approx(SERVICE + 0.5 + 2 * 0.001), "a fault holds it"


def test_queries_on_a_killed_instance_are_answered_by_others() -> None:
    kills = tuple(Kill(worker=i, at=0.5 + i / 10) for i in range(12))
    result = workload(faults=FaultPlan(kills=kills)).run(EqualResources())
    assert not np.isnan(result.latencies).any()


@pytest.mark.parametrize("policy", [ApproximateBackup, lambda: Parity(CODE)])
@pytest.mark.slow
def test_stand_ins_answer_no_query_beyond_their_coverage(policy: Callable[[], Policy]) -> None:
    def answered(faults: FaultPlan) -> set[int]:
        result = workload(queries=3000, faults=faults).run(policy())
        return set(np.flatnonzero(result.sources != SOURCES.index(Source.MODEL)).tolist())

    half = answered(msgspec.structs.replace(SLOW, coverage=HALF.coverage))
    assert half
    assert not any(HALF.refuses(query, Source.BACKUP) for query in half)
    assert not answered(msgspec.structs.replace(SLOW, coverage=0.0))
    each_half = {Source.BACKUP: 0.5, Source.RECONSTRUCTION: 0.5}
    assert answered(msgspec.structs.replace(SLOW, coverages=each_half)) == half


def test_work_during_the_warm_up_is_not_counted() -> None:
    whole = workload(queries=1000, faults=FaultPlan()).run(EqualResources())
    assert whole.units == {DEPLOYED: 1000}
    assert whole.busy[DEPLOYED] == pytest.approx(1000 * SERVICE)
    later = workload(queries=1000, faults=FaultPlan(), warm_up=400).run(EqualResources())
    assert later.units[DEPLOYED] == pytest.approx(600, abs=20)
    assert later.busy[DEPLOYED] == pytest.approx(later.units[DEPLOYED] * SERVICE)
    assert np.array_equal(whole.latencies, later.latencies)


def test_queries_that_arrive_over_months_are_refused() -> None:
    simulation = workload(arrivals=np.array([0.0, 1e14]))
    with pytest.raises(UserError, match="are simulated at most: give a higher rate or fewer"):
        simulation.run(EqualResources())
