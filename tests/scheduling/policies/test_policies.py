"""What every redundancy policy has in common."""

import pytest

from parity_models.scheduling import (
    EqualResources,
    NoRedundancy,
    Parity,
    Policy,
)
from parity_models.scheduling.policies import Pool
from scheduling_world import BOTH, ORIGINALS, PARITIES, code


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
