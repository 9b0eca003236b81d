"""Parity and hedging: what is sent, when, how much of it, and when it answers."""

from typing import Any

import pytest

from own_policy import POLICY
from parity_models.errors import UserError
from parity_models.roles import Source, parity_role
from parity_models.scheduling.actions import Answer, Decode, Encode
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import (
    EqualResources,
    Hedging,
    NoRedundancy,
    Parity,
    Policy,
    Pool,
)
from parity_models.scheduling.policies.groups import MAX_SHARERS
from scheduling_world import BOTH, ORIGINALS, PARITIES, World, code, world_of


def parity_world(
    instances: dict[str, frozenset[str]],
    decoder: str = "separate",
    *,
    share_groups: bool = True,
    **options: Any,
) -> World:
    the_code = code(decoder=decoder)
    policy = Parity(the_code, Parity.Options(**options))
    return world_of(instances, policy, code=the_code, share_groups=share_groups, audited=1000)


DEDICATED = {"a": ORIGINALS, "b": ORIGINALS, "p": PARITIES}


class Test_parity:
    def test_encodes_queries_without_a_tenant_only_where_groups_are_shared(self) -> None:
        world = parity_world({"a": BOTH, "b": BOTH, "c": BOTH}, share_groups=False)
        world.arrive(2)
        assert not world.members
        world.finish_running()
        world.arrive(2, tenant="one")
        assert list(world.members.values()) == [(2, 3)]

    def test_in_a_shared_pool_waits_until_no_original_does(self) -> None:
        world = parity_world({"a": BOTH})
        world.arrive(3)
        world.finish("a")
        world.finish("a")
        assert world.running["a"].subjects == (2,)

    def test_still_queued_is_dropped_when_its_group_is_complete(self) -> None:
        world = parity_world({"a": BOTH})
        world.arrive(2)
        world.finish("a")
        world.finish("a")
        assert not world.running
        assert not any(isinstance(action, Encode) for action in world.log)

    def test_pads_a_lonely_query_with_one_answered_before(self) -> None:
        world = parity_world(DEDICATED, "subtraction", max_group_wait=1.0)
        world.arrive(2)
        for instance in ("a", "b", "p"):
            world.finish(instance)
        world.arrive(1)
        world.pass_time(0.9)
        assert "p" not in world.running
        world.pass_time(0.2)
        assert world.members[world.running["p"].subjects[0]] == (2, 1)
        world.finish("p")
        assert world.answers[2] is Source.RECONSTRUCTION

    def test_closes_an_overdue_group_as_soon_as_there_is_padding(self) -> None:
        world = parity_world({"a": ORIGINALS, "b": ORIGINALS, "p": PARITIES}, max_group_wait=1.0)
        world.arrive(1, "image")
        world.pass_time(2.0)
        assert "p" not in world.running, "there is nothing to pad with yet"
        world.arrive(1, "image")
        assert "p" in world.running

    def test_of_many_tenants_little_is_kept(self) -> None:
        world = parity_world(DEDICATED)
        for tenant in range(100):
            world.arrive(1, tenant=f"{tenant}")
            world.finish(min(world.running))
        assert len(world.inputs) <= 2 * MAX_SHARERS

    def test_with_two_rows_recovers_two_of_three(self) -> None:
        the_code = code(3, 2, "subtraction")
        policy = Parity(the_code, Parity.Options(pool=Pool.DEDICATED))
        both_rows = frozenset({parity_role(0), parity_role(1)})
        instances = dict.fromkeys("abc", ORIGINALS) | dict.fromkeys("pq", both_rows)
        world = world_of(instances, policy, code=the_code)
        world.arrive(3)
        world.finish("b")
        world.finish("p")
        assert len(world.answers) == 1
        world.finish("q")
        decode = next(action for action in world.log if isinstance(action, Decode))
        assert decode.slots == (0, 2)
        assert [type(a) for a in world.log if isinstance(a, Decode | Answer)][-3:] == [
            Decode,
            Answer,
            Answer,
        ]


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


# Hedging


def test_hedging_does_not_copy_what_waits_in_the_common_queue() -> None:
    world = world_of(("busy",), Hedging(Hedging.Options(hedge_delay=1.0)))
    world.arrive(2)
    world.abandon(0)
    world.pass_time(1.5)
    world.join("a", ORIGINALS)
    world.join("b", ORIGINALS)
    assert "b" not in world.running
    world.pass_time(1.0)
    assert world.running["b"].subjects == (1,)


def test_hedging_learns_its_delay() -> None:
    world = world_of(("a",), Hedging(Hedging.Options(hedge_quantile=0.95)))
    for _ in range(50):
        world.arrive(1)
        world.pass_time(0.5)
        world.finish("a")
    world.join("b", ORIGINALS)
    world.arrive(1)
    world.pass_time(0.4)
    assert len(world.running) == 1
    world.pass_time(0.2)
    assert len(world.running) == 2


# A user's own policy


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (POLICY, {"again_after": 10}, "again_after must be a number, above 0 and at most 9"),
        (POLICY, {"again_after": "soon"}, "a number, above 0 and at most 9; got 'soon'"),
        (POLICY, {"scans": 7}, "scans is not an option of the policy"),
        (POLICY, {"again": 7}, "again is not an option .*; did you mean again_after"),
        (f"{__name__}:UserError", {}, "cannot be the policy: it must be a subclass of"),
        ("hedgin", {}, "did you mean hedging"),
    ],
)
def test_options_and_policies_are_checked(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PolicyChoice(name, options)
