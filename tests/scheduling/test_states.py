"""The states of queries: each event has its place, and a policy that breaks the order is told."""

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Reason
from parity_models.scheduling.policies import Policy, Replication, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.states import ENDED, TRANSITIONS, QueryState
from parity_models.scheduling.work import Query, Task
from scheduling_world import LOG, STRICT, world_of

BOTH = frozenset({DEPLOYED, BACKUP})


class AskFirst(Policy):
    """Asks the backup first, and once more when the model starts if `again`."""

    asks = StandIns(backup=True)

    def __init__(self, *, again: bool = False) -> None:
        self._again = again

    def arrived(self, port: Port, query: Query) -> None:
        port.ask(query, first=True)

    def starts(self, port: Port, task: Task) -> None:
        if self._again:
            port.ask(port.queries[task.subject], first=True)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        port.answer(port.queries[task.subject], Source.BACKUP)


def state_of(query: Query) -> QueryState:
    """Return the state; the type checker takes an attribute for unchanged."""
    return query.state


def test_every_pending_state_can_be_reached_and_left() -> None:
    reached = {state for after in TRANSITIONS.values() for state in after.values()}
    assert reached | {QueryState.WAITING, ENDED} == set(QueryState)
    assert all(TRANSITIONS[state] for state in QueryState if state is not ENDED)
    assert not TRANSITIONS[ENDED]


def test_a_query_is_deferred_then_replaced_then_waits_if_the_backup_fails() -> None:
    world = world_of({"a": BOTH}, AskFirst())
    (query,) = world.arrive(1)
    pending = world.scheduler.queries[query]
    assert state_of(pending) is QueryState.REPLACED
    (other,) = world.arrive(1)
    assert world.scheduler.queries[other].state is QueryState.DEFERRED
    assert world.scheduler.waiting == 1
    world.fail("a")
    assert world.scheduler.waiting == 1
    assert state_of(pending) is QueryState.WAITING
    world.finish_all()
    assert world.answers == {query: Source.MODEL, other: Source.BACKUP}
    assert state_of(pending) is ENDED
    assert world.scheduler.waiting == 0


def test_a_suspect_waits_until_none_of_its_copies_runs() -> None:
    world = world_of("ab", Replication())
    (query,) = world.arrive(1)
    pending = world.scheduler.queries[query]
    assert state_of(pending) is QueryState.RUNNING
    world.leave("a")
    assert state_of(pending) is QueryState.SUSPECT
    assert not world.queued(DEPLOYED)
    world.fail("b")
    assert state_of(pending) is QueryState.RUNNING, "it is tried alone"


def test_a_query_that_runs_cannot_be_asked_of_the_backup_first() -> None:
    LOG.removeHandler(STRICT)
    try:
        world = world_of({"a": BOTH, "b": BOTH}, AskFirst(again=True))
        (query,) = world.arrive(1)
        world.fail("a")
    finally:
        LOG.addHandler(STRICT)
    assert world.failures[query].reason is Reason.INTERNAL
    assert "is RUNNING, not to be ASKED_FIRST" in world.failures[query].detail
