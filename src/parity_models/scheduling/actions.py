"""What the scheduler asks its driver to do.

Every event method of the Scheduler returns a list of these, to be carried out in order. Ids of
queries are the driver's; ids of units and groups are the scheduler's. Times are in seconds.
"""

from enum import StrEnum

from msgspec import Struct

from parity_models.roles import BACKUP as BACKUP
from parity_models.roles import BACKUPS as BACKUPS
from parity_models.roles import DEPLOYED as DEPLOYED
from parity_models.roles import Backup as Backup
from parity_models.roles import Source as Source
from parity_models.roles import parity_role as parity_role
from parity_models.roles import source_of as source_of


class Reason(StrEnum):
    """Why a query failed."""

    OVERLOADED = "overloaded"
    NO_INSTANCES = "no instances"
    DEADLINE_EXCEEDED = "deadline exceeded"
    INSTANCES_FAILED = "instances failed"
    POISON = "poison"
    """Its runs end instances."""
    ABANDONED = "abandoned"
    """Its client has given up."""
    INTERNAL = "internal"
    """The driver failed to carry out an action for it."""


class RecycleReason(StrEnum):
    """Why an instance is to be replaced."""

    FAILING = "failing"
    """Its units fail again and again."""
    HUNG = "hung"
    """It has had a unit for far longer than units take."""
    QUARANTINED = "quarantined"
    """It has answered a golden query wrongly."""


class Run(Struct, frozen=True):
    """Run `role` on `instance` over `subjects`, as one batch.

    Subjects are query ids for DEPLOYED and BACKUPS, and group ids for parity work (whose parity
    query was made by an earlier Encode).
    """

    instance: str
    unit: int
    role: str
    subjects: tuple[int, ...]


class Encode(Struct, frozen=True):
    """Encode the queries `members` (slot order) into the parity queries of `group`.

    `group_wait` is how long the group's first member waited for the group to close.
    """

    group: int
    members: tuple[int, ...]
    group_wait: float


class Decode(Struct, frozen=True):
    """Reconstruct `slots` of `group` from what is available.

    `available` are the slots whose model prediction is here, `parities` the rows whose parity
    output is here. The driver reports `decoded`; only then is anybody answered.
    """

    group: int
    members: tuple[int, ...]
    available: tuple[bool, ...]
    parities: tuple[bool, ...]
    slots: tuple[int, ...]


class Answer(Struct, frozen=True):
    """Answer the query from this source: what it needs is at hand."""

    query: int
    source: Source


class Fail(Struct, frozen=True):
    """Fail the query: there will be no answer. `detail` is for people.

    `retry_after`: seconds after which a query like it can be expected to be admitted, if known.
    """

    query: int
    reason: Reason
    detail: str
    retry_after: float | None = None


class Cancel(Struct, frozen=True):
    """Nobody needs the outcome of `unit` any more.

    The engine may stop it. Its instance counts as busy until the unit is reported finished
    or failed.
    """

    instance: str
    unit: int


class Compare(Struct, frozen=True):
    """Nobody needs the outcome of `unit`, of a stand-in, any more; it runs on, to be compared.

    The driver compares its outputs with predictions of the deployed model, as far as both are to be
    had, and reports `compared`.
    """

    instance: str
    unit: int


class Verify(Struct, frozen=True):
    """Run golden query number `probe` of `role` on `instance`, as `unit`, and compare.

    The driver knows some queries whose outputs are known, for each work; they are numbered from 0
    and taken in turn (`probe` modulo their number). It reports `unit_verified`.
    """

    instance: str
    unit: int
    role: str
    probe: int


class Recycle(Struct, frozen=True):
    """End this instance and have another in its place, as far as the engine can.

    It is reported as one that left. `reason` is for counters, `why` for people: what the
    instance did ("fails ...").
    """

    instance: str
    reason: RecycleReason
    why: str


class ForgetQueries(Struct, frozen=True):
    """The input and the outputs of these queries will not be needed again."""

    queries: tuple[int, ...]


class ForgetGroup(Struct, frozen=True):
    """The parity queries and parity outputs of this group will not be needed again."""

    group: int


class WakeAt(Struct, frozen=True):
    """Report time_passed at `time`; replaces the wake-up asked for before."""

    time: float


Action = (
    Run
    | Encode
    | Decode
    | Answer
    | Fail
    | Cancel
    | Compare
    | Verify
    | Recycle
    | ForgetQueries
    | ForgetGroup
    | WakeAt
)
