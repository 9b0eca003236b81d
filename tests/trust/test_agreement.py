"""A gate closes soon when a stand-in agrees too seldom, hardly ever else, and opens again."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.trust.agreement import MAX_REMEMBERED, AgreementTest

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


def turns_after(watch: AgreementTest, agreement: float, seed: int, most: int) -> int | None:
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
        watch = AgreementTest(level)
        assert turns_after(watch, level, seed, 20_000) is None
        assert watch.open


@LEVELS
def test_the_worse_the_sooner_a_gate_closes(level: float) -> None:
    wrong = 1 - level
    took = []
    for agreement in (1 - 3 * wrong, 1 - 6 * wrong, 0.2):
        watch = AgreementTest(level)
        found = turns_after(watch, agreement, 0, int(40 / wrong))
        assert found is not None
        assert not watch.open
        took.append(found)
    assert took == sorted(took, reverse=True)
    assert took[-1] < 100


def test_a_long_good_past_does_not_hide_a_bad_present() -> None:
    watch = AgreementTest(0.99)
    assert turns_after(watch, 1.0, 0, 50_000) is None
    found = turns_after(watch, 0.9, 0, 1000)
    assert found is not None


@LEVELS
def test_a_closed_gate_opens_when_answers_agree_again(level: float) -> None:
    watch = AgreementTest(level)
    assert turns_after(watch, 0.0, 0, 1000) is not None
    assert turns_after(watch, 1 - 5 * (1 - level), 0, 5000) is None
    assert turns_after(watch, 1.0, 0, int(10 / (1 - level))) is not None
    assert watch.open


@pytest.mark.parametrize("instances", [4, 6, 12])
@LEVELS
def test_one_instance_that_is_wrong_does_not_close_a_gate(level: float, instances: int) -> None:
    """The others disagree as often as the level lets them. It is found within 500 queries."""
    closed = 0
    for seed in range(20):
        watch = AgreementTest(level)
        for agreed, makers in itertools.islice(comparisons(level, seed, instances), 500):
            closed += watch.saw(agreed and "instance-3" not in makers, makers)
    assert closed <= 2


@pytest.mark.slow
def test_an_instance_that_answers_wrongly_does_not_hide_what_others_do() -> None:
    watch = AgreementTest(0.99)
    for _, makers in itertools.islice(comparisons(1.0, 0), 3000):
        assert not watch.saw("instance-3" not in makers, makers)
    assert turns_after(watch, 0.8, 1, 4 * MAX_REMEMBERED) is not None


@pytest.mark.slow
def test_one_tenant_whose_queries_disagree_does_not_close_a_gate() -> None:
    test = AgreementTest(0.99)
    # Honest queries disagree at the level of the gate.
    for number, (agreed, makers) in zip(range(20_000), comparisons(0.99, 0), strict=False):
        absurd = number % 10 != 0
        test.saw(agreed and not absurd, makers, "absurd" if absurd else "honest")
        assert test.open, number


def test_a_tenant_that_is_alone_closes_a_gate_and_others_open_it() -> None:
    test = AgreementTest(0.99)
    while test.open:
        test.saw(False, ["0", "1"], "absurd")
    for _ in range(1000):
        test.saw(True, ["0", "1"], "honest")
    assert test.open


def test_what_many_tenants_see_closes_a_gate() -> None:
    test = AgreementTest(0.99)
    names = ["a", "b", None]
    for number, (agreed, makers) in zip(range(1000), comparisons(0.8, 0), strict=False):
        test.saw(agreed, makers, names[number % 3])
    assert not test.open


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.9, 1.0])), max_size=20))
def test_a_gate_turns_only_when_that_is_returned(steps: list[tuple[str, float]]) -> None:
    test = AgreementTest(0.9)
    made = comparisons(0.5, 0)
    for tenant, agreement in steps:
        for number in range(40):
            before = test.open
            turned = test.saw(number / 40 < agreement, next(made)[1], tenant)
            assert turned == (test.open != before)
