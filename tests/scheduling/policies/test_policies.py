"""What every redundancy policy has in common."""

import pytest

from parity_models.scheduling import (
    EqualResources,
    NoRedundancy,
    Parity,
    Policy,
    Scheduler,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.policies import Pool
from scheduling_world import BOTH, ORIGINALS, PARITIES, World, code


def test_a_default_prediction_answers_at_the_deadline() -> None:
    world = World(Scheduler(NoRedundancy(), SchedulerConfig(default_prediction=True)))
    world.join("a", ORIGINALS)
    world.arrive(1, deadline=1.0)
    world.pass_time(1.0)
    assert world.answers == {0: Source.DEFAULT}


@pytest.mark.parametrize(
    ("policy", "roles"),
    [
        (NoRedundancy(), [ORIGINALS] * 2),
        (EqualResources(), [ORIGINALS] * 3),
        (Parity(code(), Parity.Options(pool=Pool.DEDICATED)), [ORIGINALS] * 2 + [PARITIES]),
        (Parity(code(), Parity.Options(pool=Pool.SHARED)), [BOTH] * 3),
    ],
)
def test_policies_say_what_each_instance_runs(policy: Policy, roles: list[frozenset[str]]) -> None:
    assert policy.roles(2, 1) == roles
