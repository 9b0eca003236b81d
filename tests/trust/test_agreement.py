"""A gate opens on evidence, steps back on evidence, and keeps its promise at every moment."""

import itertools
from collections.abc import Hashable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.trust.agreement import (
    CHECK_EVERY,
    MAX_REMEMBERED,
    AgreementTest,
    Comparison,
    LearningGate,
    comparisons_to_open,
)
from parity_models.trust.evidence import DoubtCurve, Evidence
from parity_models.trust.gate import EVERYTHING, NOTHING

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


def saw(test: AgreementTest, agreed: bool, makers: list[str], tenant: Hashable = None) -> bool:
    return test.saw(Comparison(0.0, agreed, makers, tenant))


def turns_after(test: AgreementTest, agreement: float, seed: int, most: int) -> int | None:
    """After how many comparisons the test turns; None: after more than that."""
    for number, (agreed, makers) in zip(
        range(1, most + 1), comparisons(agreement, seed), strict=False
    ):
        if saw(test, agreed, makers):
            return number
    return None


# The test of what may answer


@LEVELS
def test_at_its_level_a_gate_stays_open(level: float) -> None:
    for seed in range(3):
        assert turns_after(AgreementTest(level), level, seed, 20_000) is None


@LEVELS
def test_the_worse_the_sooner_a_gate_steps_back(level: float) -> None:
    wrong = 1 - level
    took = []
    for agreement in (1 - 3 * wrong, 1 - 6 * wrong, 0.2):
        found = turns_after(AgreementTest(level), agreement, 0, int(40 / wrong))
        assert found is not None
        took.append(found)
    assert took == sorted(took, reverse=True)
    assert took[-1] < 100


def test_a_long_good_past_does_not_hide_a_bad_present() -> None:
    test = AgreementTest(0.99)
    assert turns_after(test, 1.0, 0, 50_000) is None
    assert turns_after(test, 0.9, 0, 1000) is not None


@LEVELS
def test_failed_agreement_passes_once_it_agrees_again(level: float) -> None:
    test = AgreementTest(level, failed=True)
    assert turns_after(test, 1 - 5 * (1 - level), 0, 5000) is None
    assert turns_after(test, 1.0, 0, int(10 / (1 - level))) is not None


@pytest.mark.parametrize("instances", [4, 6, 12])
@LEVELS
def test_one_instance_that_is_wrong_is_no_evidence(level: float, instances: int) -> None:
    """The others disagree as often as the level lets them. It is found within 500 queries."""
    failed = 0
    for seed in range(20):
        test = AgreementTest(level)
        seen = itertools.islice(comparisons(level, seed, instances), 500)
        failed += any(saw(test, ok and "instance-3" not in makers, makers) for ok, makers in seen)
    assert failed <= 2


@pytest.mark.slow
def test_an_instance_that_answers_wrongly_does_not_hide_what_others_do() -> None:
    test = AgreementTest(0.99)
    for _, makers in itertools.islice(comparisons(1.0, 0), 3000):
        assert not saw(test, "instance-3" not in makers, makers)
    assert turns_after(test, 0.8, 1, 4 * MAX_REMEMBERED) is not None


@pytest.mark.slow
def test_one_tenant_whose_queries_disagree_is_no_evidence() -> None:
    test = AgreementTest(0.99)
    # Honest queries disagree at the level of the gate.
    for number, (agreed, makers) in zip(range(20_000), comparisons(0.99, 0), strict=False):
        absurd = number % 10 != 0
        tenant = "absurd" if absurd else "honest"
        assert not saw(test, agreed and not absurd, makers, tenant), number


def test_a_tenant_that_is_alone_is_evidence_and_what_many_see_is() -> None:
    for tenants in (["alone"], ["a", "b", None]):
        test = AgreementTest(0.99)
        seen = zip(itertools.cycle(tenants), itertools.islice(comparisons(0.8, 0), 1000))
        assert any(saw(test, agreed, makers, tenant) for tenant, (agreed, makers) in seen)


# The gate


BINS = tuple(np.linspace(0, 1, 41).tolist())
"""Confidence is uniform from 0 to 1."""


def nothing() -> Evidence:
    return Evidence(BINS)


def stream(
    count: int, seed: int, wrong: float, slope: float = 2.0, classes: int = 1
) -> Iterator[Comparison]:
    """Comparisons of which a share `wrong` disagree; more often the lower their confidence.

    Of outputs with a confidence of at least c, wrong * (1 - c) ** slope do.
    """
    rng = np.random.default_rng(seed)
    sure = rng.random(count)
    disagree = np.minimum(1, (slope + 1) * wrong * (1 - sure) ** slope)
    agreed = rng.random(count) >= disagree
    said = rng.integers(classes, size=count)
    for each in zip(sure.tolist(), agreed.tolist(), said.tolist(), strict=True):
        yield Comparison(each[0], each[1], ("a", "b"), None, each[2])


def show(gate: LearningGate, seen: Iterator[Comparison]) -> list[tuple[bool, float]]:
    """Return, for each turn of the gate, whether it has opened, and its threshold."""
    turns = []
    for each in seen:
        before = gate.threshold, len(gate.barred)
        turned = gate.saw(each)
        assert turned == ((gate.threshold, len(gate.barred)) != before)
        if turned:
            turns.append(((gate.threshold, len(gate.barred)) < before, gate.threshold))
    return turns


def truly(threshold: float, wrong: float, slope: float = 2.0) -> float:
    """The agreement of outputs from this threshold on."""
    return float(1 - wrong * (1 - max(0.0, threshold)) ** slope)


@pytest.mark.parametrize(("level", "wrong"), [(0.9, 0.2), (0.99, 0.02), (0.95, 0.06)])
def test_it_opens_on_evidence_and_hardly_ever_too_far(level: float, wrong: float) -> None:
    """The rate of disagreement rises where it opens: the threshold is found, and not passed."""
    broken, found = 0, []
    for seed in range(40):
        gate = LearningGate(level, NOTHING, nothing())
        turns = show(gate, stream(6000, seed, wrong))
        assert all(opened for opened, _ in turns), "it never steps back"
        broken += any(truly(at, wrong) < level - 1e-9 for _, at in turns)
        found.append(gate.threshold)
    assert broken <= 1
    right = 1 - np.sqrt((1 - level) / wrong)
    assert right <= np.median(found) < right + 0.6 * (1 - right)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_stand_in_just_below_the_level_hardly_ever_opens_it(level: float) -> None:
    """At all its confidences. With the risk of 0.005, it would in 2 of 400 streams."""
    opened = 0
    for seed in range(400):
        gate = LearningGate(level, NOTHING, nothing())
        opened += bool(show(gate, stream(1000, seed, 1.001 * (1 - level), slope=0.0)))
    assert opened <= 6


def test_it_steps_back_to_a_higher_threshold_and_forgets() -> None:
    """Of sure outputs all agree still."""
    gate = LearningGate(0.95, EVERYTHING, nothing())
    show(gate, stream(3000, 0, 0.01))
    assert gate.threshold == EVERYTHING
    turns = show(gate, stream(1000, 1, 0.5, slope=3.0))
    assert turns
    opened, threshold = turns[0]
    assert not opened
    assert 0.1 < threshold < 1
    assert gate.evidence.total <= 1000
    assert gate.state.evidence.total == gate.evidence.total
    assert gate.state.changed > 0


def of_classes(count: int, seed: int, wrong: float) -> Iterator[Comparison]:
    """Outputs of four classes. Of class 2, a share `wrong` disagree; of others, 1 in 1,000."""
    rng = np.random.default_rng(seed)
    for each in stream(count, seed, 0.001, slope=0.0, classes=4):
        yield each._replace(agreed=rng.random() >= wrong) if each.said == 2 else each


def test_evidence_is_kept_if_only_a_class_was_barred() -> None:
    gate = LearningGate(0.95, 0.5, nothing())
    show(gate, of_classes(400, 1, 0.9))
    assert gate.state.barred == [2]
    restarts, total = gate.state.restarts, gate.evidence.total
    show(gate, of_classes(4000, 2, 0.9))
    assert gate.state.restarts == restarts == 1
    assert gate.evidence.total > total


def test_answers_before_it_steps_back_are_few() -> None:
    """Half of the answers of one class of four differ from some time on."""
    took = []
    for seed in range(10):
        gate = LearningGate(0.99, EVERYTHING, nothing())
        show(gate, of_classes(3000, seed, 0.0))
        for number, each in enumerate(of_classes(1000, seed + 100, 0.5)):
            if gate.saw(each):
                took.append(number)
                break
    assert len(took) == 10
    assert np.median(took) < 200


def test_a_worst_instance_or_tenant_does_not_make_it_step_back() -> None:
    rng = np.random.default_rng(0)
    for wrong_makers, wrong_tenant in ((("bad", "b"), None), (("a", "b"), "absurd")):
        gate = LearningGate(0.95, EVERYTHING, nothing())
        for each in stream(3000, 0, 0.01, slope=0.0):
            if rng.random() < 0.3:
                each = each._replace(agreed=False, makers=wrong_makers, tenant=wrong_tenant)
            else:
                each = each._replace(makers=("a", f"b{rng.integers(4)}"), tenant="honest")
            assert not gate.saw(each)


def test_outputs_that_may_not_answer_do_not_make_it_step_back() -> None:
    gate = LearningGate(0.95, 0.5, nothing())
    unsure = Comparison(0.2, agreed=False)
    assert not any(gate.saw(unsure, floor=NOTHING) for _ in range(1000))


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.booleans(), st.integers(0, 2)), max_size=60),
    st.integers(1, 20),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.sampled_from([EVERYTHING, 0.3, NOTHING]),
)
def test_whatever_it_sees_its_state_says_what_it_does(
    seen: list[tuple[float, bool, int]], times: int, level: float, threshold: float
) -> None:
    gate = LearningGate(level, threshold, nothing())
    show(gate, (Comparison(c, agreed, ("a",), None, said) for c, agreed, said in seen * times))
    assert gate.state.evidence.total == gate.evidence.total
    again = LearningGate(level, threshold, nothing(), gate.state)
    # What it has seen since it last looked is looked at.
    assert again.threshold <= gate.threshold
    assert set(again.barred) == set(gate.barred)
    assert gate.threshold in (*BINS, EVERYTHING, threshold, NOTHING)


def test_when_it_may_open_is_told_from_the_doubts() -> None:
    def known(wrong: float) -> DoubtCurve:
        found = nothing()
        for each in stream(400, 0, wrong):
            found.add(each.confidence, differed=not each.agreed)
        doubts = tuple(min(1.0, 3 * wrong * (1 - at) ** 2 + 1e-6) for at in BINS)
        return DoubtCurve(BINS, doubts, 400, tuple((each, 0, 0.0) for each in found.compared))

    for wrong in (0.0, 0.02):
        after = comparisons_to_open(known(wrong), 0.99)
        assert after is not None
        opened = []
        for seed in range(5):
            gate = LearningGate(0.99, NOTHING, nothing())
            seen = enumerate(stream(20 * after, seed, wrong), 1)
            opened.append(next(at for at, each in seen if gate.saw(each, floor=NOTHING)))
        assert after / 4 < np.median(opened) < 4 * after + CHECK_EVERY
    assert comparisons_to_open(DoubtCurve((0.0,), (0.5,), 9, ((9, 4, 4.5),)), 0.99) is None
    assert comparisons_to_open(DoubtCurve((0.0,), (1.0,)), 0.9) is None
