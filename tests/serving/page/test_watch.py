"""What the watch makes of a server's events, without a server."""

from collections.abc import Sequence

import pytest

from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    Reason,
    Recycle,
    RecycleReason,
    Run,
    Source,
    Spare,
    Verify,
    parity_role,
)
from parity_models.scheduling.health import State
from parity_models.serving.page.frames import GateView, InstanceView, RequestView
from parity_models.serving.page.instances import REMEMBERED
from parity_models.serving.page.watch import Watch

BOTH = frozenset({DEPLOYED, BACKUP})
EPOCH = 1000.0


class Told:
    """A watch that has been told of some instances, and a clock."""

    def __init__(self, instances: int = 3) -> None:
        self.now = 0.0
        self.watch = Watch(lambda query: 0.0, EPOCH)
        for number in range(instances):
            self.watch.instance_joined(0.0, str(number), BOTH, f"node{number % 2}")

    def act(self, *actions: Action) -> None:
        self.watch.acted(self.now, actions)

    def end(self, run: Run | Verify, *, finished: bool = True) -> None:
        self.watch.unit_ended(self.now, run, finished=finished)

    def cells(self, **states: State) -> dict[str, InstanceView]:
        return {view.name: view for view in self.watch.instances.views(self.now, states)}

    def requests(self) -> Sequence[RequestView]:
        return self.watch.requests.since(0.0, self.now)

    def events(self) -> list[tuple[str, str]]:
        return [(event.kind, event.text) for event in self.watch.events]


def run(unit: int, instance: str, role: str, *subjects: int) -> Run:
    return Run(instance, unit, role, subjects)


def test_an_instance_shows_what_it_runs_and_how_long_that_takes_it() -> None:
    told = Told()
    unit = run(1, "1", DEPLOYED, 7)
    told.act(unit)
    told.now = 0.25
    assert (told.cells()["1"].running, told.cells()["1"].since_ms) == (DEPLOYED, 250.0)
    told.end(unit)
    assert (told.cells()["1"].running, told.cells()["1"].usual_ms) == ("", 250.0)


def test_an_instance_is_slow_whose_units_take_longer_than_those_of_others() -> None:
    told = Told()
    for number, seconds in enumerate((0.01, 0.012, 0.05)):
        unit = run(number, str(number), DEPLOYED, number)
        told.act(unit)
        told.now += seconds
        told.end(unit)
    assert [name for name, cell in told.cells().items() if cell.slow] == ["2"]


def test_an_instance_is_slow_as_soon_as_its_unit_takes_longer_than_those_of_others() -> None:
    told = Told()
    for number in range(3):
        unit = run(number, str(number), DEPLOYED, number)
        told.act(unit)
        told.now += 0.01
        told.end(unit)
    told.act(run(9, "0", DEPLOYED, 9))
    told.now += 0.015
    assert not told.cells()["0"].slow
    told.now += 0.015
    assert told.cells()["0"].slow


def test_an_instance_that_is_gone_stays_in_its_place_until_another_comes_for_it() -> None:
    told = Told()
    place = told.cells()["1"].place
    told.watch.instance_left(1.0, "1", "was ended by signal 9 (Killed)")
    gone = told.cells()["1"]
    assert (gone.place, gone.state, gone.why) == (place, "gone", "was ended by signal 9 (Killed)")
    told.watch.instance_joined(2.0, "1.1", BOTH, "node1")
    assert "1" not in told.cells()
    assert told.cells()["1.1"].place == place
    assert [kind for kind, _ in told.events()] == ["left", "joined"]


def test_the_place_of_an_instance_that_does_not_come_back_is_given_up() -> None:
    told = Told()
    told.watch.instance_left(1.0, "1", "left")
    told.now = 1.0 + REMEMBERED
    assert "1" not in told.cells()


def test_states_are_shown_and_ejections_are_events() -> None:
    told = Told()
    told.watch.states(1.0, {"0": State.EJECTED, "1": State.SUSPECTED})
    assert told.cells(**{"0": State.EJECTED})["0"].state == "ejected"
    told.watch.states(2.0, {"0": State.UP, "1": State.UP})
    assert [kind for kind, _ in told.events()] == ["ejected", "back"]


def test_a_coding_group_shows_its_queries_and_which_of_them_the_parity_model_answered() -> None:
    told = Told()
    original, parity = run(1, "0", DEPLOYED, 11), run(2, "1", parity_role(0), 5)
    told.act(original, Encode(5, (11, 12), 0.0), parity)
    assert told.requests()[0].queries == (11, 12)
    assert told.requests()[0].outcome == "running"
    told.now = 0.02
    told.end(parity)
    told.act(Decode(5, (11, 12), (False, True), (True,), (0,)))
    told.act(Answer(11, Source.RECONSTRUCTION), ForgetGroup(5))
    (request,) = told.requests()
    assert (request.outcome, request.answered) == ("answered", (11,))
    assert request.ms == pytest.approx(20)


@pytest.mark.parametrize(
    ("finished", "cancelled", "refused", "outcome"),
    [
        (True, False, False, "late"),
        (True, True, False, "late"),
        (False, True, False, "cancelled"),
        (False, False, False, "lost"),
        (True, False, True, "refused"),
    ],
)
def test_what_became_of_a_backup(
    finished: bool, cancelled: bool, refused: bool, outcome: str
) -> None:
    told = Told()
    backup = run(2, "1", BACKUP, 11)
    told.act(run(1, "0", DEPLOYED, 11), backup)
    if cancelled:
        told.act(Cancel("1", 2))
    told.end(backup, finished=finished)
    if refused:
        told.watch.refused(told.now, {11}, Source.BACKUP)
    assert [request.outcome for request in told.requests()] == [outcome]


def test_what_one_backup_is_refused_another_may_answer() -> None:
    told = Told()
    backup, better = run(2, "1", BACKUP, 11), run(3, "2", "backup-2", 11)
    told.act(run(1, "0", DEPLOYED, 11), backup, better)
    told.end(backup)
    told.watch.refused(told.now, {11}, Source.BACKUP)
    told.end(better)
    told.act(Answer(11, Source.BACKUP_2))
    assert [request.outcome for request in told.requests()] == ["refused", "answered"]


def test_a_backup_that_runs_for_a_comparison_is_told_from_one_that_is_not_needed() -> None:
    told = Told()
    backup = run(2, "1", BACKUP, 11)
    told.act(backup, Compare("1", 2))
    told.end(backup)
    assert [request.outcome for request in told.requests()] == ["compared"]


def test_a_backup_that_answers_is_told_from_one_whose_query_was_answered_before() -> None:
    told = Told()
    first, second = run(2, "1", BACKUP, 11), run(3, "2", BACKUP, 12)
    told.act(run(1, "0", DEPLOYED, 11, 12), first, second)
    told.end(first)
    told.act(Answer(11, Source.BACKUP))
    told.end(second)
    assert [request.outcome for request in told.requests()] == ["answered", "late"]
    assert told.watch.answers == {Source.BACKUP: 1}


def test_a_further_task_of_a_query_that_runs_is_a_copy_and_a_retry_is_none() -> None:
    told = Told()
    first, copy = run(1, "0", DEPLOYED, 11), run(2, "1", DEPLOYED, 11)
    told.act(first, copy)
    assert [request.role for request in told.requests()] == ["copy"]
    told.end(copy)
    told.act(Answer(11, Source.MODEL))
    told.end(first, finished=False)
    told.act(run(3, "2", DEPLOYED, 11))
    assert [(request.role, request.outcome) for request in told.requests()] == [
        ("copy", "answered")
    ]


def test_the_tail_without_stand_ins_is_that_of_the_models_own_answers() -> None:
    told = Told()
    original, backup = run(1, "0", DEPLOYED, 11), run(2, "1", BACKUP, 11)
    told.act(original, backup)
    told.now = 0.05
    told.end(backup)
    told.act(Answer(11, Source.BACKUP), Spare("0", 1, 4))
    told.now = 0.4
    told.end(original)
    with_stand_ins = told.watch.tails.with_stand_ins(2.0).now
    without = told.watch.tails.without(2.0).now
    assert with_stand_ins is not None
    assert without is not None
    assert with_stand_ins.p99 == pytest.approx(50, rel=0.02)
    assert without.p99 == pytest.approx(400, rel=0.02)


def test_replaced_instances_and_failing_queries_are_events_once() -> None:
    told = Told()
    told.act(Recycle("1", RecycleReason.QUARANTINED, "answered a golden query wrongly"))
    for query in range(5):
        told.act(Fail(query, Reason.OVERLOADED, "too much waits"))
    assert told.events() == [
        ("quarantined", "instance 1 is replaced: it answered a golden query wrongly"),
        ("failed", "queries fail (overloaded): too much waits"),
    ]
    assert told.watch.failures == {Reason.OVERLOADED: 5}


def test_a_gate_that_closes_and_opens_is_told_once_each() -> None:
    told = Told()
    is_open = GateView("backup", 0.99, 0.9, True, 10, 10, 10, 10)
    closed = GateView("backup", 0.99, 0.9, False, 20, 12, 20, 12)
    for gate in (is_open, closed, closed, is_open, is_open):
        told.watch.gates(1.0, [gate])
    assert [kind for kind, _ in told.events()] == ["gate closed", "gate open"]


def test_events_have_numbers_so_that_each_watcher_can_be_sent_what_is_new() -> None:
    told = Told()
    told.watch.instance_left(1.0, "1", "left")
    told.watch.instance_left(2.0, "2", "left")
    first, second = told.watch.events_after(0)
    assert told.watch.events_after(first.number) == (second,)
    assert second.at == EPOCH + 2.0
