"""A gate closes soon when a stand-in agrees too seldom, hardly ever else, and opens again."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.serving.agreement_watch import (
    MAX_TENANTS,
    REMEMBERED,
    AgreementWatch,
    AgreementWatches,
)

LEVELS = pytest.mark.parametrize("level", [0.9, 0.97, 0.99, 0.999])


def comparisons(
    agreement: float, seed: int, instances: int = 6
) -> Iterator[tuple[bool, list[str]]]:
    """Comparisons for ever, each by two of the instances."""
    rng = np.random.default_rng(seed)
    names = [f"instance-{one}" for one in range(instances)]
    while True:
        agreed = (rng.random(1000) < agreement).tolist()
        ones = rng.integers(instances, size=1000)
        others = (ones + rng.integers(1, instances, size=1000)) % instances
        for agrees, one, other in zip(agreed, ones.tolist(), others.tolist(), strict=True):
            yield agrees, [names[one], names[other]]


def turns_after(watch: AgreementWatch, agreement: float, seed: int, most: int) -> int | None:
    """After how many comparisons the gate opens or closes; None: after more than that."""
    for number, (agreed, makers) in zip(
        range(1, most + 1), comparisons(agreement, seed), strict=False
    ):
        if watch.saw(agreed, makers):
            return number
    return None


@LEVELS
def test_at_its_level_a_gate_stays_open(level: float) -> None:
    for seed in range(3):
        watch = AgreementWatch(level)
        assert turns_after(watch, level, seed, 20_000) is None
        assert watch.open


@LEVELS
def test_the_worse_the_sooner_a_gate_closes(level: float) -> None:
    wrong = 1 - level
    took = []
    for agreement in (1 - 3 * wrong, 1 - 6 * wrong, 0.2):
        watch = AgreementWatch(level)
        found = turns_after(watch, agreement, 0, int(40 / wrong))
        assert found is not None
        assert not watch.open
        took.append(found)
    assert took == sorted(took, reverse=True)
    assert took[-1] < 100


def test_a_long_good_past_does_not_hide_a_bad_present() -> None:
    watch = AgreementWatch(0.99)
    assert turns_after(watch, 1.0, 0, 50_000) is None
    found = turns_after(watch, 0.9, 0, 1000)
    assert found is not None


@LEVELS
def test_a_closed_gate_opens_when_answers_agree_again(level: float) -> None:
    watch = AgreementWatch(level)
    assert turns_after(watch, 0.0, 0, 1000) is not None
    assert turns_after(watch, 1 - 5 * (1 - level), 0, 5000) is None
    assert turns_after(watch, 1.0, 0, int(10 / (1 - level))) is not None
    assert watch.open


@pytest.mark.parametrize("instances", [4, 6, 12])
@LEVELS
def test_one_instance_that_answers_wrongly_does_not_close_a_gate(
    level: float, instances: int
) -> None:
    """The others disagree as often as the level lets them. It is found within 500 queries."""
    closed = 0
    for seed in range(20):
        watch = AgreementWatch(level)
        for agreed, makers in itertools.islice(comparisons(level, seed, instances), 500):
            closed += watch.saw(agreed and "instance-3" not in makers, makers)
    assert closed <= 2


@pytest.mark.slow
def test_an_instance_that_answers_wrongly_does_not_hide_what_others_do() -> None:
    watch = AgreementWatch(0.99)
    for _, makers in itertools.islice(comparisons(1.0, 0), 3000):
        assert not watch.saw("instance-3" not in makers, makers)
    assert turns_after(watch, 0.8, 1, 4 * REMEMBERED) is not None


def test_where_one_instance_makes_everything_it_counts() -> None:
    watch = AgreementWatch(0.99)
    assert any(watch.saw(False, ["only", "only"]) for _ in range(100))


def test_one_tenant_whose_queries_disagree_closes_a_gate_for_itself_alone() -> None:
    watches = AgreementWatches(0.99)
    # Honest queries disagree at the level of the gate.
    for number, (agreed, makers) in zip(range(20_000), comparisons(0.99, 0), strict=False):
        absurd = number % 10 != 0
        turned = watches.saw(agreed and not absurd, makers, "absurd" if absurd else "honest")
        assert not turned.for_all, number
    assert watches.open
    assert not watches.is_open_for("absurd")
    assert watches.is_open_for("honest")
    assert watches.is_open_for(None)
    for _, (_, makers) in zip(range(1000), comparisons(1.0, 1), strict=False):
        watches.saw(True, makers, "absurd")
    assert watches.is_open_for("absurd")


@LEVELS
def test_what_one_tenant_asked_is_not_held_against_others_later(level: float) -> None:
    watches = AgreementWatches(level)
    for number, (_, makers) in zip(range(2000), comparisons(1.0, 0), strict=False):
        watches.saw(number % 10 == 0, makers, "honest" if number % 10 == 0 else "absurd")
    for agreed, makers in itertools.islice(comparisons(level, 1), 20_000):
        watches.saw(agreed, makers, "honest")
        assert watches.is_open_for("honest")


def test_a_gate_that_a_tenant_alone_closed_is_open_for_others() -> None:
    watches = AgreementWatches(0.99)
    while watches.open:
        watches.saw(False, ["0", "1"], "absurd")
    assert watches.closed_by == {"absurd"}
    assert watches.tenants_shut_out == 1
    assert not watches.is_open_for("absurd")
    assert watches.is_open_for("honest")
    while watches.is_open_for("honest"):  # which has to be so itself
        watches.saw(False, ["0", "1"], "honest")


def test_what_many_tenants_see_closes_a_gate_for_all() -> None:
    watches = AgreementWatches(0.99)
    names = ["a", "b", None]
    for number, (agreed, makers) in zip(range(1000), comparisons(0.8, 0), strict=False):
        watches.saw(agreed, makers, names[number % 3])
    assert not watches.open
    assert watches.closed_by == set(names)
    assert not any(watches.is_open_for(tenant) for tenant in [*names, "another"])
    for number, (agreed, makers) in zip(range(3000), comparisons(1.0, 0), strict=False):
        watches.saw(agreed, makers, names[number % 3])
    assert all(watches.is_open_for(tenant) for tenant in [*names, "another"])
    assert not watches.closed_by
    assert not watches.tenants_shut_out


def test_tenants_that_disagree_once_each_open_no_gate_that_is_closed_for_another() -> None:
    watches = AgreementWatches(0.99)
    while watches.is_open_for("bad"):
        watches.saw(True, ["0", "1"], "good")
        watches.saw(False, ["0", "1"], "bad")
    assert watches.open
    assert watches.tenants_shut_out == 1
    for number in range(2 * MAX_TENANTS):
        watches.saw(False, ["0", "1"], f"{number}")
        for _ in range(100):
            watches.saw(True, ["0", "1"], "good")
    assert len(watches) == MAX_TENANTS
    assert not watches.is_open_for("bad")
    assert watches.tenants_shut_out == 1


SAID = st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.9, 1.0]), st.integers(1, 40))
OTHERS = st.just(("others", 0.0, MAX_TENANTS + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(SAID, OTHERS), max_size=15))
def test_a_gate_opens_and_closes_for_nobody_unless_that_is_told(
    steps: list[tuple[str, float, int]],
) -> None:
    watches = AgreementWatches(0.9)
    made = comparisons(0.5, 0)
    for step, (name, agreement, times) in enumerate(steps):
        for number in range(times):
            _, makers = next(made)
            before = [watches.is_open_for(tenant) for tenant in "abc"], watches.tenants_shut_out
            tenant = f"{step} {number}" if name == "others" else name
            turned = watches.saw(number / times < agreement, makers, tenant)
            after = [watches.is_open_for(tenant) for tenant in "abc"], watches.tenants_shut_out
            assert turned.for_all or turned.for_one or before == after
            assert len(watches) <= MAX_TENANTS


def test_whoever_disagrees_again_and_again_is_not_forgotten() -> None:
    watches = AgreementWatches(0.99)
    for step in range(20):
        watches.saw(False, ["0", "1"], "often")
        for number in range(MAX_TENANTS // 2):
            watches.saw(False, ["0", "1"], f"{step} {number}")
            for _ in range(100):
                watches.saw(True, ["0", "1"], "good")
    assert not watches.is_open_for("often")


def test_where_all_who_are_watched_are_shut_out_nobody_is_watched_instead() -> None:
    watches = AgreementWatches(0.99)
    for number in range(MAX_TENANTS + 1):
        for _ in range(100):
            watches.saw(False, ["0", "1"], f"{number}")
    assert len(watches) == MAX_TENANTS
    assert watches.tenants_shut_out == MAX_TENANTS
    assert not any(watches.is_open_for(f"{number}") for number in range(MAX_TENANTS))


def test_no_more_than_so_many_tenants_are_watched_alone() -> None:
    watches = AgreementWatches(0.99)
    for number in range(3 * MAX_TENANTS):
        watches.saw(False, ["0", "1"], f"{number}")
        watches.saw(True, ["0", "1"], f"good {number}")
    assert len(watches) == MAX_TENANTS
    for number in range(3 * MAX_TENANTS):
        for _ in range(1000):
            watches.saw(True, ["0", "1"], f"{number}")
    assert len(watches) == 0, "nothing speaks against them any more"
