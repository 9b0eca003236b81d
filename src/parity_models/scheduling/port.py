"""The port of the scheduler: what policies may ask and do, and what its own parts may besides.

The scheduler (core.py) is both a `Port` and a `Core`. Policies never write its state, nor queries,
tasks and units. Times are in seconds.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from parity_models.roles import Source
from parity_models.scheduling.actions import Action, Decode, Reason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.process_load import ProcessLoad
from parity_models.scheduling.states import QueryEvent
from parity_models.scheduling.work import Query, SchedulerConfig, Task, Unit


class Port(Protocol):
    """The questions and verbs of policies."""

    # Questions

    @property
    def now(self) -> float:
        """The time of the event that is being handled."""

    @property
    def queries(self) -> Mapping[int, Query]:
        """The pending queries, by id."""

    @property
    def max_batch(self) -> int:
        """Maximum number of tasks in a unit."""

    @property
    def redundancy_on(self) -> bool:
        """True if redundancy is switched on; if not, copies and tasks are not queued."""

    @property
    def closed_gates(self) -> Collection[Source]:
        """The sources whose gate is closed."""

    @property
    def process_load(self) -> ProcessLoad:
        """The lag and the load of the server's own process."""

    @property
    def nodes(self) -> int:
        """The number of nodes that run the deployed model; 0 if no two instances share one."""

    def up(self, role: str) -> int:
        """Return how many instances are up that can run this role."""

    def idle_for(self, role: str) -> int:
        """Return how many instances that can run this role are idle."""

    def queued(self, role: str) -> int:
        """Return how many tasks of this role are queued."""

    def copies_in_flight(self, query: Query) -> int:
        """Return how many running tasks of stand-ins contain the query's input."""

    def pace(self, instance: str | None) -> float:
        """Return the time of the instance's recent units, in mean times of their roles; 1 if it is
        unknown."""

    def shares_node(self, task: Task, others: Iterable[Task]) -> bool:
        """Return whether one of the others runs on this task's node."""

    # Tasks

    def submit(
        self,
        role: str,
        group: int,
        kind: Hashable,
        members: Sequence[int],
        apart: list[Task],
        *,
        preemptible: bool = False,
    ) -> Task:
        """Queue a parity query of the queries `members`, which joins the tasks `apart` (see
        `keep_apart`)."""

    def screen(self, query: Query) -> bool:
        """Return whether a stand-in may see the query's inputs, and answer it. If they are unlike
        those that stand-ins learned from, the query is `exact` from now on, and not `coded`."""

    def ask(self, query: Query, *, first: bool = False, preemptible: bool = False) -> bool:
        """Queue a task of the backup for the query, or `first`, in place of its original. Do
        nothing if the query is not to be seen (`screen`); return whether it is.

        Only a query that is WAITING can be asked of the backup first. Its original is queued again
        if the answer is rejected, if the task fails, or by `queue_again`.
        """

    def copy(self, query: Query) -> None:
        """Queue a copy of the query, to run the deployed model on another instance.

        It goes to the head of the queue, because it counts as old as its query.
        """

    def drop(self, task: Task) -> None:
        """Unqueue a task that is not needed, or cancel its unit if no task in it is needed."""

    def queue_again(self, task: Task) -> None:
        """Queue a task at the head: it failed or was lost, or the backup was asked first."""

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        """Add the query's original to the tasks `apart`: anti-affinity.

        Tasks of the list, including later ones, run on different instances and nodes, as far as
        there are enough. With a coding `group`, the query's tasks share no batch with other
        members' tasks.
        """

    def keep_idle(self, instances: int) -> None:
        """Start preemptible tasks only while more instances than these are idle."""

    # Timers

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> int:
        """Call back once, at a time. If the callback raises, the queries in `about` fail.

        Return the number of the timer, which is above 0.
        """

    def cancel_timer(self, *timers: int) -> None:
        """Cancel timers; fired ones and 0 are ignored."""

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        """Call back at a time, unless the query has ended or has a newer alarm.

        There is a minimum delay, so that a postponed decision is not reconsidered for ever at one
        instant.
        """

    def tell(self, about: Collection[int], hook: Callable[..., None], *args: Any) -> None:
        """Call a hook of the policy. If it raises, the queries in `about` fail."""

    # Answers

    def answer(self, query: Query, source: Source, doubt: float = 0.0) -> None:
        """Answer the query, now. A stand-in's output differs with the probability `doubt`."""

    def decode(self, decode: Decode) -> None:
        """Have slots of a group reconstructed, and their queries answered.

        Until then these queries are `decoding`. A query whose reconstruction is rejected is not
        answered, and is `exact` from then on.
        """

    def act(self, action: Action) -> None:
        """Have the driver carry out an action that changes nothing here.

        A group's parity queries are made by `Encode` before its first parity task runs.
        """

    def hold(self, query: int) -> bool:
        """Keep a query's tensors until a matching `release`. Return False if they are already
        forgotten."""

    def release(self, query: int) -> None:
        """Give up a hold on a query's tensors."""


class Core(Port, Protocol):
    """The port of the scheduler's own parts: health, poison and comparison."""

    @property
    def config(self) -> SchedulerConfig:
        """The bounds."""

    @property
    def dispatch(self) -> Dispatch:
        """The queued tasks and the idle instances."""

    @property
    def units(self) -> Mapping[int, Unit]:
        """The units that run, by id, the oldest first."""

    def fail(self, query: Query, reason: Reason, detail: str) -> None:
        """Fail the query, now."""

    def advance(self, query: Query, event: QueryEvent) -> None:
        """Change the query's state. Raises RuntimeError if the event cannot happen in it."""

    def verify(
        self, instance: str, role: str, probe: int, query: int | None = None, kind: Hashable = None
    ) -> Unit:
        """Have an instance that gets nothing else answer a golden query of a role, or a `query` of
        this kind again."""
