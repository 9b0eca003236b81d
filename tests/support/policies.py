"""Policies of each kind, and all dispatch rules, for tests that hold for every one."""

from collections.abc import Callable
from random import Random

from parity_models.codes import Code
from parity_models.scheduling import NoRedundancy, Parity, Policy
from parity_models.scheduling.dispatch import RULES, Dispatch
from parity_models.scheduling.policies import (
    Adaptive,
    ApproximateBackup,
    Cascade,
    Hedging,
    Pool,
    Replication,
    StandIns,
)
from parity_models.scheduling.run_times import RunTimes

EVERY_RULE: list[type[Dispatch]] = [*RULES]


def every_policy(wait: float) -> dict[str, Callable[[Code], Policy]]:
    """Builders of policies that send redundant work after so many seconds."""
    return {
        "none": lambda code: NoRedundancy(),
        "replication": lambda code: Replication(Replication.Options(copies=2)),
        "three copies": lambda code: Replication(Replication.Options(copies=3)),
        "hedging": lambda code: Hedging(Hedging.Options(hedge_delay=wait, hedge_budget=1.0)),
        "cascade": lambda code: Cascade(Cascade.Options(hedge_delay=wait, hedge_budget=1.0)),
        "backup": lambda code: ApproximateBackup(),
        "parity": lambda code: Parity(code, Parity.Options(max_group_wait=wait)),
        "parity, dedicated": lambda code: Parity(
            code, Parity.Options(pool=Pool.DEDICATED, max_group_wait=wait)
        ),
        "parity, delayed": lambda code: Parity(
            code, Parity.Options(max_group_wait=None, parity_delay=wait)
        ),
        "adaptive": lambda code: _adaptive(code, wait),
    }


def _adaptive(code: Code, wait: float) -> Policy:
    random, run_times = Random(1), RunTimes()
    for _ in range(1000):
        run_times.add(wait + 2 * wait * random.expovariate(1), finished=True)
    return Adaptive(StandIns(code, True), run_times=run_times)
