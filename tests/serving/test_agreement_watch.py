"""A gate closes soon when a stand-in agrees too seldom, hardly ever else, and opens again."""

from collections.abc import Iterator

import numpy as np
import pytest

from parity_models.serving.agreement_watch import REMEMBERED, AgreementWatch

LEVELS = pytest.mark.parametrize("level", [0.9, 0.97, 0.99, 0.999])


def comparisons(
    agreement: float, seed: int, instances: int = 6
) -> Iterator[tuple[bool, list[str]]]:
    """Comparisons for ever, each by two of the instances."""
    rng = np.random.default_rng(seed)
    while True:
        for chance in rng.random(1000):
            pair = rng.choice(instances, 2, replace=False)
            yield bool(chance < agreement), [f"instance-{one}" for one in pair]


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


@pytest.mark.slow
def test_one_instance_that_answers_wrongly_does_not_close_a_gate() -> None:
    watch = AgreementWatch(0.99)
    for number, (_, makers) in zip(range(3000), comparisons(1.0, 0), strict=False):
        assert not watch.saw("instance-3" not in makers, makers), number
    # It does not hide what others do, either.
    assert turns_after(watch, 0.8, 1, 4 * REMEMBERED) is not None


def test_where_one_instance_makes_everything_it_counts() -> None:
    watch = AgreementWatch(0.99)
    assert any(watch.saw(False, ["only", "only"]) for _ in range(100))
