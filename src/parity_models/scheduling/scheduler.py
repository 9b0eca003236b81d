"""The scheduler: everything that decides what runs where and when a query is answered.

Theory of operation. A driver (the asyncio frontend, the simulator, a test) reports events by
calling the methods of `Scheduler` and carries out the actions they return, in order. Nothing
here waits, sleeps or reads a clock: the same events give the same actions.

- A *query* lives from `queries_arrived` until it is answered or failed, once. Its deadline is a
  timer; whatever happens, it ends then.
- A *task* is one row of work for one model: the query itself for the deployed model, a parity
  query for a parity model. It is queued, then running as part of a unit, then over.
- A *unit* is the batch of tasks that one instance runs. An instance runs one unit at a time.
  The tasks of a failed unit, or of an instance that left, go back to the head of the queue.
- A *node* is what instances fail with: their machine. A query and its copies, and the units of a
  coding group, run on different nodes, as far as there are instances on enough of them.
- The *policy* (policies/) decides what is sent besides the originals and when an answer can be
  had otherwise. It acts through the port (port.py).
- *Holds* count who may still need a query's tensors: the query itself while unanswered, its
  coding group, the padding kept for lonely queries. The last one to let go makes the driver
  forget them.

This file has the events. What is known, and the verbs that change it, is in scheduler_port.py; how
queries begin and end in queries.py, how units do in units.py.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence

from parity_models.scheduling.actions import (
    BACKUPS,
    DEPLOYED,
    Action,
    Reason,
    Source,
    source_of,
)
from parity_models.scheduling.config import SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.front_door import FrontDoor, Redundancy
from parity_models.scheduling.health import State
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.queries import Queries
from parity_models.scheduling.scheduler_port import SchedulerPort
from parity_models.scheduling.units import Units


class Scheduler:
    """Events in, actions out; see the theory of operation above. Times in seconds.

    The contract with the driver: it reports what happened to one instance in order, but an event
    may be reported late, after timers that were due before it, or twice, or for a unit or an
    instance that is gone. What an event says counts before timers that have become due in the
    meantime: an output that is here answers its query, however late it is. An event that says
    nothing new is ignored. A `Cancel` or `Compare` may come for a unit that has ended but
    is not reported yet; the driver ignores it. If a hook of the policy raises, the queries that it
    was about fail as INTERNAL, and all else goes on.

    Raises ValueError for a query id that is in use: the only thing that no lateness explains.
    """

    def __init__(
        self,
        policy: Policy,
        config: SchedulerConfig | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        self._policy = policy
        self._dispatch = policy.dispatch() if dispatch is None else dispatch
        self._port = SchedulerPort(policy, config or SchedulerConfig(), self._dispatch)
        self._queries = Queries(self._port)
        self._units = Units(self._port)

    # Events

    def queries_arrived(
        self,
        now: float,
        queries: Sequence[int],
        kind: Hashable,
        deadline: float | None = None,
        *,
        tenant: Hashable = None,
        exact: Collection[int] = (),
    ) -> list[Action]:
        """Queries of one kind (shape and dtype) arrived together; all or none are admitted.

        `deadline` is the time at which they fail if unanswered. They share coding groups only with
        queries of the same `tenant`, and those that are `exact` with none. Raises ValueError for
        one that is here already.
        """
        for query_id in queries:
            if self._port.remembers(query_id):
                raise ValueError(f"query {query_id} is here already; ids must be unique")
        self._advance(now)
        self._port.timers.fire(self._port.now)  # what has expired does not wait
        self._queries.arrived(now, queries, kind, deadline, tenant, exact)
        return self._done()

    def queries_abandoned(self, now: float, queries: Iterable[int]) -> list[Action]:
        """Nobody waits for these queries any more; those that are pending end."""
        self._advance(now)
        self._queries.failed(queries, Reason.ABANDONED, "its client has given up")
        return self._done()

    def queries_failed(self, now: float, queries: Iterable[int], detail: str) -> list[Action]:
        """The driver could not carry out an action for these queries; those pending fail."""
        self._advance(now)
        self._queries.failed(queries, Reason.INTERNAL, detail)
        return self._done()

    def unit_finished(
        self,
        now: float,
        unit: int,
        unusable: Collection[int] = (),
        *,
        ended_at: float | None = None,
    ) -> list[Action]:
        """An instance has run a unit; the driver holds its outputs.

        The outputs for the subjects `unusable` cannot be right, or may not be given: a stand-in's
        answers nobody, and a prediction of the deployed model is the answer to its own query only.
        `ended_at` is when the instance was done, by this clock, if it says so: the report has
        waited since.
        """
        self._advance(now)
        port = self._port
        port.reported(unit, ended_at)
        ended = self._units.end(unit, finished=True)
        if ended is None or ended.is_comparison:
            return self._done()
        for task in ended.tasks:
            usable = task.subject not in unusable
            if task.role != DEPLOYED:
                if usable:
                    port.tell((), self._policy.redundancy_finished, port, task)
                elif task.role in BACKUPS:
                    self._queries.refused(task.subject, source_of(task.role))
                continue
            if usable:
                port.tell((task.subject,), self._policy.predicted, port, task)
            query = port.queries.get(task.subject)
            if query is not None:
                port.background.answered(query)
                port.answer(query, Source.MODEL)
        return self._done()

    def unit_failed(self, now: float, unit: int, detail: str, *, busy: float = 0.0) -> list[Action]:
        """A unit failed on an instance that is still up (or was cancelled).

        `busy`: the instance has turned it away, which is nobody's failure, and gets no unit for so
        many seconds.
        """
        self._advance(now)
        ended = self._units.end(unit, finished=False, rest=busy)
        if ended is not None:
            self._units.failed(ended, detail, turned_away=busy > 0)
        return self._done()

    def decoded(self, now: float, group: int, wrong: Collection[int] = ()) -> list[Action]:
        """A Decode has been carried out; the reconstructions of the slots `wrong` may not be given.

        They cannot be right, or are not likely enough to be. To be reported for every Decode, as
        soon as the actions beside it have been carried out.
        """
        self._advance(now)
        self._queries.decoded(group, wrong)
        return self._done()

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None = None
    ) -> list[Action]:
        """An instance is up, idle, and can run these roles; None: it has a node to itself."""
        self._advance(now)
        self._units.joined(instance, roles, node)
        return self._done()

    def instance_left(self, now: float, instance: str) -> list[Action]:
        """An instance is gone, and what it was running with it."""
        self._advance(now)
        self._units.left(instance)
        return self._done()

    def unit_verified(self, now: float, unit: int, right: bool) -> list[Action]:
        """An instance has answered the golden query of a Verify, and the answer is right or not."""
        self._advance(now)
        self._units.verified(unit, right=right)
        return self._done()

    def compared(self, now: float, instance: str, agreed: bool) -> list[Action]:
        """A prediction of this instance agrees with what would have replaced it, or does not."""
        self._advance(now)
        self._units.health.compared(instance, agreed=agreed)
        return self._done()

    def gate_turned(self, now: float, source: Source, is_open: bool) -> list[Action]:
        """The gate of this source has opened or closed: it may answer, or may not until it opens.

        All are open at first. The outputs of one that is closed are told to be unusable or wrong.
        """
        self._advance(now)
        self._port.background.gate_turned(source, is_open=is_open)
        return self._done()

    def process_measured(self, now: float, lag: float, busy: float) -> list[Action]:
        """A timer of the driver's own was `lag` seconds late, and its process has used the share
        `busy` of a core since the last time."""
        self._advance(now)
        self._port.front_door.busy = busy
        self._port.waited(lag)
        return self._done()

    def redundancy_switched(self, now: float, on: bool) -> list[Action]:
        """From now on redundant work is sent, or none; it is at first."""
        self._advance(now)
        self._port.redundancy_on = on
        return self._done()

    def time_passed(self, now: float) -> list[Action]:
        """It is `now`; the driver calls this at the time of the last WakeAt."""
        self._advance(now)
        return self._done()

    # What a driver may ask

    @property
    def pending(self) -> int:
        """How many queries have been neither answered nor failed."""
        return self._port.pending

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are queued, by role."""
        return self._dispatch.depths()

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by role they can run."""
        return self._dispatch.instances_up()

    def capacity(self, now: float) -> float:
        """Queries a second that admission takes the instances to answer at most; 0: unknown."""
        return self._port.admission.capacity(now, self._dispatch.up(DEPLOYED))

    def work_held_back(self) -> dict[str, int]:
        """How often a late query was not sent to a role, as the budget or the load forbade it."""
        return dict(self._port.work_held_back)

    @property
    def redundancy(self) -> Redundancy:
        """Whether redundant work is sent now, or why not."""
        port = self._port
        return self._policy.redundancy(port) if port.redundancy_on else Redundancy.OFF

    @property
    def front_door(self) -> FrontDoor:
        """How late and how busy the driver's process is."""
        return self._port.front_door

    def running(self) -> dict[str, int | None]:
        """The instances that are up, as far as reported, and the unit that each one runs."""
        return {name: unit.id if unit else None for name, unit in self._port.running.items()}

    def instances(self) -> list[tuple[str, State]]:
        """Every instance that has joined and not left, and how it is."""
        return self._units.health.states()

    def size(self) -> int:
        """How many things are remembered; bounded by the policy's padding when none is pending."""
        poison = self._units.poison
        return len(self._port) + len(self._queries) + len(poison) + len(self._dispatch)

    # Inside

    def _advance(self, now: float) -> None:
        if now > self._port.now:
            self._port.now = now

    def _done(self) -> list[Action]:
        """Timers that are due come after what the event said, and before anything is started."""
        self._settle()
        # What is decoded needs no instance, if it can be right: that is reported at once.
        while not self._port.deciding and self._units.start():
            self._settle()
        self._port.background.settle()
        return self._port.take_actions()

    def _settle(self) -> None:
        """Let timers fire that are due, and fail what the policy failed."""
        port = self._port
        port.timers.fire(port.now)
        while port.broken:
            query_id, detail = port.broken.pop()
            self._queries.failed([query_id], Reason.INTERNAL, detail)
        self._units.poison.retry()
