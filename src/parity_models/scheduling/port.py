"""The port: what policies may know of the scheduler, and what they may have done.

It lies below policies and dispatch rules, and the scheduler implements it. Who acts through it
reads queries, tasks and units, and never writes them. Times are in seconds.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Protocol

from parity_models.scheduling.actions import Decode, Encode, Reason, RecycleReason, Source
from parity_models.scheduling.front_door import FrontDoor
from parity_models.scheduling.timers import Timer
from parity_models.scheduling.work import Query, Task, Unit


class Port(Protocol):
    """What a redundancy policy may ask, and what it may have done."""

    # What it may ask

    @property
    def now(self) -> float:
        """The time of the event that is being handled."""

    @property
    def pending(self) -> int:
        """How many queries have been neither answered nor failed."""

    @property
    def max_batch(self) -> int:
        """How many tasks a unit may hold."""

    @property
    def nodes(self) -> int:
        """How many nodes run the deployed model; 0 where every instance has one to itself."""

    @property
    def front_door(self) -> FrontDoor:
        """How late and how busy the server's own process is."""

    @property
    def redundancy_on(self) -> bool:
        """Whether redundancy is switched on; while it is not, no copy and no task is queued."""

    def run_time(self, unit: Unit) -> float:
        """How long a unit ran that has just ended, without what its report has waited."""

    def queued(self, role: str) -> int:
        """How many tasks of this role are queued."""

    def up(self, role: str) -> int:
        """How many instances are up that can run this role."""

    def pending_query(self, query: int) -> Query | None:
        """The query, if it has been neither answered nor failed."""

    def is_placed(self, task: Task) -> bool:
        """Is the task running, or is it settled on which instance it will?"""

    def beside(self, task: Task, others: Iterable[Task]) -> bool:
        """Does one of the others run, or is it settled that it will, on this task's node?"""

    # Tasks

    def submit(
        self,
        role: str,
        subject: int,
        kind: Hashable,
        apart: list[Task],
        *,
        preemptible: bool = False,
        avoid: Collection[str] = (),
    ) -> Task:
        """Queue a task of redundant work. It joins the tasks `apart`: see `keep_apart`.

        It is not given to the instances to `avoid`, as long as others are up.
        """

    def copy(self, query: Query, *, last: bool = False, avoid: Collection[str] = ()) -> None:
        """Queue a copy of the query, to run the deployed model on another instance.

        It goes to the head of the queue, for it is as old as its query; `last`, to the end. It is
        not given to the instances to `avoid`, as long as others are up.
        """

    def held_back(self, role: str) -> None:
        """A late query is not sent to this role now, as the budget or the load forbids: counted."""

    def drop(self, task: Task) -> None:
        """Nobody needs this task: take it from the queue, or cancel its unit if it was the last."""

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        """Anti-affinity: the query's original joins the tasks `apart`.

        Those run on different instances and nodes, as far as there are enough, and so do tasks
        that join the list later. The query's tasks never share a batch with those of other members
        of its coding group, if that is given.
        """

    def keep_idle(self, instances: int) -> None:
        """Start preemptible tasks only while more instances than these are idle."""

    # Timers

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> Timer:
        """Call back at a time; `about` are the queries that fail if that raises."""

    def cancel_timer(self, timer: Timer | None) -> None:
        """Cancel a timer; one that has fired or is None is left alone."""

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        """Call back at a time, if the query has not ended by then and has no newer alarm.

        Never at once: what is not yet to be done would else be looked at for ever, at one time.
        """

    # Answers

    def encode(self, encode: Encode) -> None:
        """Have the parity queries of a group made: before its first parity task runs."""

    def decode(self, decode: Decode) -> None:
        """Have slots of a group reconstructed, and their queries answered.

        Until then the queries are `decoding`; those whose reconstruction may not be given are not
        answered, and are `spoiled` from then on.
        """

    def forget_group(self, group: int) -> None:
        """The parity queries and parity outputs of an encoded group are not needed again."""

    def answer(self, query: Query, source: Source) -> None:
        """Answer the query, now."""

    def hold(self, query: int) -> bool:
        """Keep the query's tensors until a matching release; False: they are forgotten already."""

    def release(self, query: int) -> None:
        """The query's tensors are not needed any more by who held them."""


class HealthPort(Port, Protocol):
    """What those may have done besides who decide about instances, and what is lost with them."""

    @property
    def units(self) -> Mapping[int, Unit]:
        """The units that run, by their ids, oldest first."""

    def tell(
        self, about: Collection[int], hook: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        """Call a hook of the policy; if it raises, the queries `about` which it was fail soon."""

    def verify(self, instance: str, role: str, probe: int) -> Unit:
        """Have an instance that is given nothing else answer a golden query of a role."""

    def recycle(self, instance: str, reason: RecycleReason, why: str) -> None:
        """Have an instance ended, and another put in its place."""

    def queue_again(self, task: Task) -> None:
        """Queue a task again, at the head, after it failed or was lost."""

    def fail(
        self, query: Query, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        """Fail the query, now."""
