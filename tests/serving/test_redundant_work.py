"""What becomes of redundant work is counted in any history, and nothing is remembered for ever."""

from collections.abc import Collection, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from histories import check_nothing_is_left
from observed_world import observed_history
from parity_models.scheduling import (
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Run,
    Source,
    Verify,
)
from parity_models.serving.frontend import FATES, USUAL, Observer, RedundantWork
from parity_models.serving.metrics import Metrics

ORIGINAL = Run("a", 1, "deployed", (1, 2))
COPY = Run("b", 2, "deployed", (1,))
BACKUP = Run("c", 3, "backup", (2,))
PARITY = Run("d", 4, "parity-0", (9,))


class Counted(Observer):
    """Redundant work, told what a frontend would, and what is counted of it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.work = RedundantWork(self.metrics)

    def act(self, *actions: Action) -> None:
        self.acted(0.0, actions)

    def end(self, *units: Run, finished: bool = True) -> None:
        for unit in units:
            self.work.ended(unit, finished=finished)

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self.work.began(action)
                case Answer(query, source):
                    self.work.resolved(query, source)
                case Fail(query):
                    self.work.resolved(query, None)
                case Cancel():
                    self.work.not_needed(action.unit, "cancelled")
                case Compare():
                    self.work.not_needed(action.unit, "compared")
                case Decode():
                    self.work.decoding(action)
                case ForgetGroup():
                    self.work.group_forgotten(action.group)

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        if isinstance(unit, Run):
            self.work.ended(unit, finished=finished)

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        self.work.refused(queries, source)

    def of(self, kind: str) -> dict[str, float]:
        """What is not 0, by fate."""
        value = self.metrics.registry.get_sample_value
        values = {
            fate: value("parm_redundant_tasks_total", {"kind": kind, "fate": fate})
            for fate in FATES
        }
        return {fate: value for fate, value in values.items() if value}


def test_a_copy_that_is_first_answers_and_one_that_is_second_is_wasted() -> None:
    counted = Counted()
    counted.act(ORIGINAL)
    assert counted.of("copy") == {}
    counted.act(COPY)
    counted.end(COPY)
    counted.act(Answer(1, Source.MODEL))
    assert counted.of("copy") == {"sent": 1, "answered": 1}
    later = Run("b", 5, "deployed", (2,))
    counted.act(later)
    counted.end(ORIGINAL)
    counted.act(Answer(2, Source.MODEL), ForgetQueries((1, 2)))
    counted.end(later)
    assert counted.of("copy") == {"sent": 2, "answered": 1, "wasted": 1}
    assert counted.work.remembered == 0


def test_a_query_that_is_run_again_as_its_unit_failed_is_no_copy() -> None:
    counted = Counted()
    counted.act(ORIGINAL)
    counted.end(ORIGINAL, finished=False)
    counted.act(COPY)
    assert counted.of("copy") == {}


@pytest.mark.parametrize(
    ("source", "fate"), [(Source.BACKUP, "answered"), (Source.MODEL, "wasted")]
)
def test_a_backup_answers_or_is_wasted(source: Source, fate: str) -> None:
    counted = Counted()
    counted.act(ORIGINAL, BACKUP)
    counted.end(BACKUP)
    counted.act(Answer(2, source), ForgetQueries((1, 2)))
    assert counted.of("backup") == {"sent": 1, fate: 1}


def test_a_parity_query_answers_whom_it_reconstructs() -> None:
    counted = Counted()
    decode = Decode(9, (1, 2), (False, False), (True,), (0, 1))
    counted.act(ORIGINAL, PARITY)
    counted.end(PARITY)
    counted.act(decode, Answer(1, Source.RECONSTRUCTION), Answer(2, Source.RECONSTRUCTION))
    counted.act(ForgetGroup(9))
    assert counted.of("parity") == {"sent": 1, "answered": 2}


def test_what_is_compared_is_neither_wasted_nor_cancelled() -> None:
    counted = Counted()
    counted.act(ORIGINAL, BACKUP, Compare("c", 3))
    counted.end(ORIGINAL)
    counted.act(Answer(1, Source.MODEL), Answer(2, Source.MODEL), ForgetQueries((1, 2)))
    counted.end(BACKUP)
    counted.work.refused([2], Source.BACKUP)
    assert counted.of("backup") == {"sent": 1, "compared": 1}
    assert counted.work.remembered == 0


def test_what_the_gate_refuses_is_counted() -> None:
    counted = Counted()
    counted.act(ORIGINAL, BACKUP, PARITY)
    counted.end(BACKUP, PARITY)
    counted.work.refused([2], Source.BACKUP)
    counted.act(Decode(9, (1, 2), (False, False), (True,), (0,)))
    counted.work.refused([1], Source.RECONSTRUCTION)
    counted.end(ORIGINAL)
    counted.act(Answer(1, Source.MODEL), Answer(2, Source.MODEL), ForgetGroup(9))
    for kind in ("backup", "parity"):
        assert counted.of(kind) == {"sent": 1, "refused": 1, "wasted": 1}


@given(st.integers(0, 2**32 - 1))
@example(16522)  # a copy runs in one batch with another query's original
@example(614526)  # a comparison begins after the answer, while the same task still runs elsewhere
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_counts_add_up_in_any_history(seed: int) -> None:
    counted = Counted()
    world, k = observed_history(seed, lambda: counted)
    check_nothing_is_left(world, k)
    sources: Sequence[Source] = list(world.answers.values())
    assert counted.work.remembered == 0
    counts = {kind: {"sent": 0.0, **counted.of(kind)} for kind in USUAL}
    assert counts["backup"].get("answered", 0) == sources.count(Source.BACKUP)
    assert counts["parity"].get("answered", 0) == sources.count(Source.RECONSTRUCTION)
    for kind in ("copy", "backup"):
        of = counts[kind]
        done = sum(of.get(fate, 0) for fate in ("answered", "cancelled", "wasted", "compared"))
        assert done <= of["sent"]  # the others were lost with their instances
