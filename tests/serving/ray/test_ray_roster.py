"""The roster grants every instance to one frontend, evenly, and moves as few as that takes."""

from collections import Counter, defaultdict
from itertools import product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.ray.roster import (
    INTERVAL,
    TTL,
    FrontendReport,
    InstanceReport,
    Replica,
    Roster,
    assign,
)

DEPLOYED, PARITY = frozenset({"deployed"}), frozenset({"parity-0"})


def replica(
    number: int, roles: frozenset[str] = DEPLOYED, node: str = "n", bundle: str = "b"
) -> Replica:
    return Replica(f"i{number}", bundle, roles, node, f"tcp://{number}", f"tcp://{number}")


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Replica], dict[str, str], dict[str, str]]:
    """Replicas, frontends, and who holds what; some holders are gone."""
    bundles = st.sampled_from(["old", "new"])
    replicas = [
        replica(
            number,
            draw(st.sampled_from([DEPLOYED, PARITY])),
            f"n{draw(st.integers(0, 3))}",
            draw(bundles),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    frontends = {f"f{number}": draw(bundles) for number in range(draw(st.integers(0, 4)))}
    named = st.sampled_from([*frontends, "gone", None])
    holders = {each.key: draw(named) for each in replicas}
    return replicas, frontends, {key: who for key, who in holders.items() if who is not None}


@given(situations())
def test_every_seat_goes_to_a_frontend_of_its_bundle_and_none_has_two_more_than_another(
    situation: tuple[list[Replica], dict[str, str], dict[str, str]],
) -> None:
    replicas, frontends, holders = situation
    assigned = assign(replicas, frontends, holders)
    loads: dict[tuple[str, frozenset[str]], Counter[str]] = defaultdict(Counter)
    for each in replicas:
        among = [name for name, bundle in frontends.items() if bundle == each.bundle]
        assert (each.key in assigned) == bool(among)
        if among:
            assert assigned[each.key] in among
            loads[each.bundle, each.roles].update([assigned[each.key], *among])
    for load in loads.values():
        assert max(load.values()) - min(load.values()) <= 1


@given(situations())
def test_as_few_move_as_evenness_takes(
    situation: tuple[list[Replica], dict[str, str], dict[str, str]],
) -> None:
    replicas, frontends, holders = situation
    assigned = assign(replicas, frontends, holders)
    kinds = defaultdict(list)
    for each in replicas:
        if each.key in assigned:
            kinds[each.bundle, each.roles].append(each.key)
    for (bundle, _), keys in kinds.items():
        among = [name for name, its in frontends.items() if its == bundle]
        kept = sum(assigned[key] == holders.get(key) for key in keys)
        share, more = divmod(len(keys), len(among))
        held = Counter(holders.get(key) for key in keys)
        best = max(
            sum(min(held[name], share + extra) for name, extra in zip(among, extras, strict=True))
            for extras in product([0, 1], repeat=len(among))
            if sum(extras) == more
        )
        assert kept == best
    assert assign(replicas, frontends, assigned) == assigned


def test_a_frontend_s_instances_are_on_different_nodes_where_there_is_a_choice() -> None:
    replicas = [replica(2 * node + each, node=f"n{node}") for node in range(3) for each in range(2)]
    assigned = assign(replicas, {"f": "b", "g": "b"}, {})
    nodes = defaultdict(set)
    for each in replicas:
        nodes[assigned[each.key]].add(each.node)
    assert {name: len(its) for name, its in nodes.items()} == {"f": 3, "g": 3}


def reported(
    roster: Roster, now: float, frontend: str, held: tuple[Replica, ...] = (), **more: Any
) -> tuple[Replica, ...]:
    return roster.frontend_seen(now, FrontendReport(frontend, "b", held, **more))


def test_a_seat_moves_when_its_frontend_has_let_go_of_it() -> None:
    roster = Roster(0.0)
    replicas = [replica(number) for number in range(2)]
    for each in replicas:
        roster.instance_seen(0.0, InstanceReport(each))
    assert set(reported(roster, 0.0, "f")) == set(replicas)
    assert reported(roster, 0.1, "g") == ()
    (kept,) = reported(roster, 0.2, "f", tuple(replicas))
    assert reported(roster, 0.3, "g") == ()  # it may still have a unit
    assert reported(roster, 0.4, "f", (kept,)) == (kept,)
    (given,) = reported(roster, 0.5, "g")
    assert {kept, given} == set(replicas)
    # One that stops leaves all to the other, and one that is not heard of, too.
    assert reported(roster, 0.6, "g", leaving=True) == ()
    assert set(reported(roster, 0.7, "f", (kept,))) == set(replicas)
    assert reported(roster, 0.8 + TTL, "g") == ()
    for each in replicas:
        roster.instance_seen(1.0 + TTL, InstanceReport(each))
    assert set(reported(roster, 1.1 + TTL, "g")) == set(replicas)


def test_a_new_roster_takes_nothing_from_anybody() -> None:
    roster = Roster(0.0)
    replicas = [replica(number) for number in range(4)]
    roster.instance_seen(0.0, InstanceReport(replicas[0], "f"))
    roster.instance_seen(0.0, InstanceReport(replicas[1], "g"))
    # The first to report is not given what others have, nor what an instance says is another's.
    assert reported(roster, 0.1, "g", (replicas[1], replicas[2])) == (replicas[1], replicas[2])
    assert set(reported(roster, 0.2, "f", (replicas[0], replicas[3]))) == {replicas[0], replicas[3]}
    # A frontend that an instance names and that never reports is gone.
    late = Roster(0.0)
    late.instance_seen(0.0, InstanceReport(replicas[0], "gone"))
    assert reported(late, 0.1, "f") == ()
    late.instance_seen(TTL, InstanceReport(replicas[0], "gone"))
    assert reported(late, TTL + 0.1, "f") == (replicas[0],)


def test_seats_that_leave_or_are_lost_are_let_go_and_a_holder_vouches_for_its_own() -> None:
    roster = Roster(0.0)
    first, second = replica(0), replica(1)
    for each in (first, second):
        roster.instance_seen(0.0, InstanceReport(each))
    assert set(reported(roster, 0.0, "f")) == {first, second}
    roster.instance_seen(INTERVAL, InstanceReport(first, "f", leaving=True))
    assert reported(roster, INTERVAL, "f", (first, second)) == (second,)
    # Reports of an instance may fail; who has it knows that it is there.
    for step in range(1, 10):
        assert reported(roster, step * TTL / 2, "f", (second,)) == (second,)
    lost = FrontendReport("f", "b", lost=(second.key,))
    assert roster.frontend_seen(5 * TTL, lost) == ()
    roster.instance_seen(5 * TTL, InstanceReport(second, "f"))
    assert reported(roster, 5 * TTL, "f") == (second,)
