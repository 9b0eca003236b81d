"""The actions that the scheduler asks its driver to carry out.

Every event method of the Scheduler returns a list of these, to be carried out in order. Ids of
queries are the driver's; ids of units and groups are the scheduler's. Times are in seconds.
"""

from enum import StrEnum

from msgspec import Struct

from parity_models.roles import Source


class Reason(StrEnum):
    """The reason why a query failed."""

    OVERLOADED = "overloaded"
    NO_INSTANCES = "no instances"
    DEADLINE_EXCEEDED = "deadline exceeded"
    INSTANCES_FAILED = "instances failed"
    POISON = "poison"
    """It crashes instances."""
    ABANDONED = "abandoned"
    """Its client has given up."""
    INTERNAL = "internal"
    """The driver failed to carry out an action for it."""


class RecycleReason(StrEnum):
    """The reason for replacing an instance."""

    FAILING = "failing"
    """Its units fail again and again."""
    HUNG = "hung"
    """Its unit takes far longer than units take."""
    QUARANTINED = "quarantined"
    """It answered a golden query, or clients' queries, wrongly."""


class Action(Struct, frozen=True, tag=True):
    """The base of all actions. Its name is the `type` in a journal."""


class Run(Action, frozen=True):
    """Run `role` on `instance` over `subjects`, as one batch.

    Subjects are query ids for DEPLOYED and BACKUP, and group ids for parity models; an earlier
    Encode made the group's parity queries.
    """

    instance: str
    unit: int
    role: str
    subjects: tuple[int, ...]


class Encode(Action, frozen=True):
    """Encode the queries `members`, by slot, into the parity queries of `group`.

    `group_wait` is how long the group's first member waited for the group to close.
    """

    group: int
    members: tuple[int, ...]
    group_wait: float


class Decode(Action, frozen=True):
    """Reconstruct `slots` of `group`, and report `decoded`; only then are queries answered.

    `available` marks the slots whose model prediction has arrived, `parities` the rows whose parity
    output has arrived.
    """

    group: int
    members: tuple[int, ...]
    available: tuple[bool, ...]
    parities: tuple[bool, ...]
    slots: tuple[int, ...]


class Answer(Action, frozen=True):
    """Answer the query from this source, whose output has arrived.

    `doubt`: the probability that a stand-in's output differs from the model's prediction.
    """

    query: int
    source: Source
    doubt: float = 0.0


class Audit(Action, frozen=True):
    """Compare a stand-in's output for the query with the model's prediction; both have arrived.

    The query was drawn at random among those for which a stand-in was asked. `late`: it was asked
    as the query was late; else it was asked first. `answered`: its output was the answer.
    """

    query: int
    late: bool
    answered: bool


class Fail(Action, frozen=True):
    """Fail the query; `detail` is for people.

    `retry_after`: seconds after which a similar query can be expected to be admitted, if known.
    """

    query: int
    reason: Reason
    detail: str
    retry_after: float | None = None


class Cancel(Action, frozen=True):
    """Stop `unit`, whose outcome is not needed, if the engine can.

    Its instance counts as busy until the unit is reported finished or failed.
    """

    instance: str
    unit: int


class Compare(Action, frozen=True):
    """Let a stand-in's `unit` finish, and compare its outputs, which no query needs.

    Compare them with the deployed model's predictions that have arrived; report `compared`. `late`:
    the stand-in was asked as the queries were late; else they were drawn at random among those
    that the model answered in time.
    """

    instance: str
    unit: int
    late: bool


class Verify(Action, frozen=True):
    """Run golden query number `probe` of `role` on `instance`, as `unit`; report `unit_verified`.

    The driver has some queries with known outputs for each role, and takes them in turn: `probe`
    counts from 0, modulo their number. With a `query`, run that query's input again instead, and
    report the number of its `answer`.
    """

    instance: str
    unit: int
    role: str
    probe: int
    query: int | None = None


class Recycle(Action, frozen=True):
    """End this instance and start another in its place, as far as the engine can.

    Then report `instance_left`. `reason` is for counters, `why` for people ("fails ...").
    """

    instance: str
    reason: RecycleReason
    why: str


class ForgetQueries(Action, frozen=True):
    """The inputs and outputs of these queries are not needed again."""

    queries: tuple[int, ...]


class ForgetGroup(Action, frozen=True):
    """The parity queries and parity outputs of this group are not needed again."""

    group: int


class WakeAt(Action, frozen=True):
    """Report `time_passed` at `time`; replaces the previous wake-up."""

    time: float
