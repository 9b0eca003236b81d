"""A stand-in's judge learns from comparisons, of queries in time and of late ones."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.trust.doubt import fit_doubt
from parity_models.trust.evidence import Learned
from parity_models.trust.gate import (
    NOTHING,
    AnsweredClass,
    Calibration,
    Gate,
    GateLevel,
    confidences,
)
from parity_models.trust.gates import UNKNOWN, Calibrations
from parity_models.trust.judge import FIRST, StandInJudge

CLASSES = 3
LEVEL = 0.9
Outputs = NDArray[np.float32]


def outputs(count: int, seed: int = 0) -> Outputs:
    return np.random.default_rng(seed).normal(size=(count, CLASSES)).astype(np.float32)


def other(output: Outputs) -> Outputs:
    """A prediction of another class."""
    return np.roll(output, 1)


def learn(
    judge: StandInJudge, given: Outputs, *, wrong: Any = (), late: bool = False, **more: Any
) -> list[bool]:
    """Compare each output; predictions differ for the classes that are `wrong`. Return whether
    the gate has turned, each time."""
    turned = []
    for output in given:
        prediction = other(output) if int(output.argmax()) in wrong else output
        before = len(judge.turns)
        agreed = judge.compare(output, prediction, late=late, **more)
        assert agreed == (int(output.argmax()) not in wrong)
        turned.append(len(judge.turns) > before)
    return turned


def calibration(queries: int = 400, **more: Any) -> Calibration:
    """Of so many queries of which 1 in 5 differs."""
    sure = confidences("scores", outputs(queries, 1))
    curve = fit_doubt(sure, np.arange(queries) % 5 != 0)
    return Calibration("classes", 0.0, "scores", queries, 0.05, curve=curve, **more)


def judge(
    known: Calibration, level: float = LEVEL, shown: GateLevel | None = None, **more: Any
) -> StandInJudge:
    return StandInJudge(Gate(known, level, shown), **more)


SHOWN = GateLevel(LEVEL, 0.0, 0.5, 0.95)


# In time


def test_it_starts_where_calibration_says_and_opens_further() -> None:
    judged = judge(calibration(), shown=SHOWN)
    sure = confidences("scores", outputs(500))
    assert judged.is_open
    assert (judged.judge(outputs(500)).refused == (sure < 0)).all()
    assert not judged.turns
    assert any(learn(judged, outputs(2000)))
    assert judged.turns[-1].opened
    assert not judged.turns[-1].late
    assert not judged.judge(outputs(500)).refused.any()
    assert str(judged.turns[-1]).startswith("opened further: ")
    assert judged.coverage == 1
    turn = judged.turns[-1]
    assert turn.total == turn.answers >= 400, "the queries of calibration count"
    assert turn.answers - turn.agreed == 80


def test_it_steps_back_from_a_class_and_the_class_returns() -> None:
    judged = judge(calibration(), shown=msgspec.structs.replace(SHOWN, threshold=-100.0))
    learn(judged, outputs(1000))
    assert any(learn(judged, outputs(300, 2), wrong=[1]))
    assert not judged.turns[-1].opened
    assert str(judged.turns[-1]).startswith("stepped back, ")
    some = outputs(500)
    assert judged.is_open
    assert (judged.judge(some).refused == (some.argmax(axis=1) == 1)).all()
    learn(judged, outputs(1000, 3))
    assert judged.turns[-1].opened
    assert not judged.judge(some).refused.any()


def test_without_a_gate_only_what_is_no_output_is_refused() -> None:
    judged = StandInJudge(Gate(calibration()))
    some = outputs(4)
    some[1, 1] = np.nan
    verdict = judged.judge(some)
    assert verdict.refused.tolist() == [False, True, False, False]
    assert verdict.doubts[1] == 1
    assert judged.is_open
    before = judged.judge(outputs(99)).doubts.sum()
    learn(judged, outputs(2000))
    assert judged.judge(outputs(99)).doubts.sum() < before / 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_and_predictions_that_are_no_numbers_are_no_comparisons(value: float) -> None:
    judged = judge(calibration(), shown=SHOWN)
    good = outputs(1)[0]
    for place in range(CLASSES):
        bad = good.copy()
        bad[place] = value
        for one, two in ((good, bad), (bad, good)):
            assert judged.compare(one, two, late=False, answered=True) is None
    assert judged.doubts is not None
    assert judged.doubts.seen == judged.doubts.own.total == 0


def test_values_without_confidence_are_judged_alike() -> None:
    found = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    known = Calibration("values", 0.1, "none", 0, 0.05)
    judged = judge(known)
    for each in found[:FIRST]:
        judged.compare(each, each + 0.01, late=False)
    assert judged.judge(found[:1]).refused.tolist() == [not judged.is_open]
    for each in found:
        judged.compare(each, each + 0.01, late=False)
    assert not judged.judge(found).refused.any()
    while judged.is_open:
        judged.compare(found[0], found[0] + 5, late=False)
    assert judged.judge(found).refused.all()


# Classes


def one_sided() -> StandInJudge:
    """It may answer the classes 0, from a threshold on, and 2, which is not shown."""
    only = AnsweredClass(0, "a"), AnsweredClass(2, "c", 0.95)
    shown = GateLevel(LEVEL, NOTHING, 0.2, 0.95, (GateLevel(LEVEL, 0.5, 0.2, 0.95, number=0),))
    return judge(calibration(answer_only=only), shown=shown)


def test_one_sided_gates_learn_by_class() -> None:
    judged, some = one_sided(), outputs(1000)
    said, sure = some.argmax(axis=1), confidences("scores", some)

    def answered(number: int) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = ~judged.judge(some).refused & (said == number)
        return found

    assert (answered(0) == ((said == 0) & (sure >= 0.5))).all()
    assert not answered(1).any() | answered(2).any()
    learn(judged, outputs(3000, 2), wrong=[0])
    assert answered(2).sum() == (said == 2).sum(), "its own comparisons opened it"
    assert not answered(0).any(), "its own closed it"
    assert not answered(1).any()
    judged = one_sided()
    learn(judged, outputs(3000, 2), wrong=[2])
    assert answered(0).sum() == (said == 0).sum()
    assert not answered(1).any() | answered(2).any()


# Late queries


def test_late_queries_step_the_gate_back_by_their_own_test() -> None:
    judged = judge(calibration(), shown=SHOWN)
    learn(judged, outputs(2000))
    assert not any(learn(judged, outputs(500, 2), late=True))
    assert any(learn(judged, outputs(100, 3), wrong=[0, 1, 2], late=True))
    turn = judged.turns[-1]
    assert turn.late
    assert not turn.opened
    assert not judged.is_open
    assert judged.doubts is not None
    assert judged.doubts.own.total == 2000, "doubts learn from queries in time"
    assert judged.asks, "it is asked for late queries, to show that it agrees again"
    learn(judged, outputs(3000, 4))
    assert not judged.is_open, "queries in time say nothing of late ones"
    learn(judged, outputs(6000, 5), late=True)
    assert judged.is_open


def test_a_restart_at_another_level_starts_from_calibration() -> None:
    learned = Learned()
    easy = judge(calibration(), level=0.9, learned=learned)
    assert any(learn(easy, outputs(3000)))
    assert not judge(calibration(), level=0.999, learned=learned).is_open


def test_others_teach_a_stand_in_without_a_calibration() -> None:
    first = judge(UNKNOWN)
    learn(first, outputs(300, 9), late=True)
    assert not first.is_open, "late queries are others"
    learn(first, outputs(3000))
    assert first.is_open
    assert judge(UNKNOWN, others=[first.learned]).is_open


def test_a_gate_that_another_server_closed_starts_closed() -> None:
    first = judge(calibration(), shown=SHOWN)
    assert learn(first, outputs(100, 3), wrong=[0, 1, 2])
    assert not first.is_open
    second = StandInJudge(first.gate, others=[first.learned])
    assert not second.is_open
    learn(second, outputs(6000, 4))
    assert second.is_open


def test_late_answers_are_audited() -> None:
    judged = judge(calibration(), shown=SHOWN, differ=0.01)
    for doubt in judged.judge(outputs(9)).doubts:
        judged.answered(doubt)
    estimate, most = judged.differing
    assert 0 < estimate < most
    before = judged.judge(outputs(9)).doubts
    learn(judged, outputs(60), wrong=[0, 1, 2], late=True, answered=True)
    assert (judged.judge(outputs(9)).doubts >= before).all()
    assert np.median(judged.judge(outputs(9)).doubts) > 0.9
    judged.change(0.02)
    assert judged.differing == (0, 0)


# Without a calibration


def test_without_a_calibration_it_starts_closed_and_takes_thresholds_from_the_first() -> None:
    learned = Learned()
    judged = judge(UNKNOWN, learned=learned)
    assert not judged.is_open
    verdict = judged.judge(outputs(9))
    assert verdict.refused.all()
    assert (verdict.doubts == 1).all()
    assert (judged.factor, judged.differing, judged.coverage) == (1, (0, 0), 0)
    turned = learn(judged, outputs(FIRST - 1))
    assert not any(turned)
    assert judged.doubts is None
    assert learned.comparisons is None
    learn(judged, outputs(1, 9))
    assert judged.doubts is not None
    assert learned.comparisons is not None
    assert learned.comparisons.total == FIRST, "the first ones count"
    assert judged.is_open, "they all agreed"
    learn(judged, outputs(1000, 2))
    assert not judged.judge(outputs(99)).refused.any()
    assert judged.judge(outputs(99)).doubts.max() < 0.1


def test_without_a_calibration_but_with_a_budget_doubts_fall_from_1() -> None:
    judged = StandInJudge(Gate(UNKNOWN), differ=0.01)
    assert (judged.judge(outputs(9)).doubts == 1).all()
    assert judged.judge(outputs(9)).refused.all(), "a large budget would pay for some"
    assert not StandInJudge(Gate(UNKNOWN), differ=1.0).judge(outputs(9)).refused.any()
    learn(judged, outputs(2000))
    assert judged.judge(outputs(9)).doubts.max() < 0.05


@pytest.mark.parametrize("compared", [FIRST, 600, 1500])
@pytest.mark.parametrize("restart", [False, True])
def test_without_a_calibration_the_factor_is_as_if_it_were_calibrated(
    compared: int, restart: bool
) -> None:
    """The first comparisons are counted with doubts that were fitted to others."""
    learned, some, rng = Learned(), outputs(compared), np.random.default_rng(0)
    judged = StandInJudge(Gate(UNKNOWN), 0.01, learned)
    for output, differs in zip(some, (rng.random(compared) < 0.02).tolist(), strict=True):
        judged.compare(output, other(output) if differs else output, late=False)
    if restart:
        judged = StandInJudge(Gate(UNKNOWN), 0.01, learned)
    assert judged.doubts is not None
    assert learned.comparisons is not None
    expected, differed = sum(learned.comparisons.expected), sum(learned.comparisons.differed)
    assert 0.5 < expected / differed < 2
    assert judged.factor > 1


def test_the_first_without_a_calibration_may_say_that_it_stays_closed() -> None:
    judged = judge(UNKNOWN)
    learn(judged, outputs(FIRST + 2000), wrong=[0, 1, 2])
    assert not judged.is_open
    assert (judged.judge(outputs(9)).doubts > 0.9).all()


# What is kept


@pytest.mark.parametrize("known", [UNKNOWN, calibration()], ids=["not calibrated", "calibrated"])
@pytest.mark.parametrize("wrong", [[], [1]], ids=["all agree", "a class does not"])
def test_the_next_judge_starts_where_this_one_stopped(known: Calibration, wrong: list[int]) -> None:
    learned = Learned()
    judged = judge(known, learned=learned)
    learn(judged, outputs(2000))
    learn(judged, outputs(1000, 2), wrong=wrong)
    kept = msgspec.json.decode(msgspec.json.encode(learned), type=Learned)
    again, some = judge(known, learned=kept), outputs(500)
    assert (again.judge(some).refused == judged.judge(some).refused).all()
    assert again.is_open
    for one, two in zip(again.judge(some).doubts, judged.judge(some).doubts, strict=True):
        assert one == pytest.approx(two, rel=1)
    # Another server at the same time begins with what this one has learned.
    if known.queries and not wrong:
        assert judge(known, others=[kept]).is_open


@pytest.mark.parametrize(
    "known", [UNKNOWN, calibration(4000)], ids=["not calibrated", "calibrated"]
)
@pytest.mark.parametrize("after", [0, 100, 2000])
def test_calibration_from_before_outputs_began_to_differ_stays_forgotten(
    known: Calibration, after: int
) -> None:
    learned = Learned()
    judged = StandInJudge(Gate(known), 0.01, learned)
    learn(judged, outputs(1000))
    learn(judged, outputs(100, 2), wrong=[0, 1, 2], late=True, answered=True)
    learn(judged, outputs(after, 3), wrong=[1])
    kept = msgspec.json.decode(msgspec.json.encode(learned), type=Learned)
    again, some = StandInJudge(Gate(known), 0.01, kept), outputs(500)
    assert judged.doubts is not None
    assert again.doubts is not None
    assert again.doubts.smallest_shown >= 0.99 * judged.doubts.smallest_shown
    before, now = judged.judge(some).doubts, again.judge(some).doubts
    assert now == pytest.approx(before, rel=0.5)


def test_evidence_of_other_thresholds_is_ignored() -> None:
    learned = Learned()
    learn(judge(calibration(), learned=learned), outputs(2000))
    again = judge(calibration(300), learned=learned)
    assert not again.is_open
    assert learned.comparisons is not None
    assert learned.comparisons.total == 0


def test_gates_report_what_service_added(tmp_path: Path) -> None:
    known = calibration()
    gates = Calibrations({"backup": known}, tmp_path, "d")
    assert list(gates.learned()) == []
    store = gates.evidence()
    learn(judge(known, 0.99, learned=store.learned(Source.BACKUP)), outputs(3000))
    store.close()
    (note,) = gates.learned()
    assert note.startswith("backup: service has added 3,000 comparisons; a gate of 0.99 now lets")
