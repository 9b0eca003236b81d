"""The hooks of a redundancy policy, the stand-ins that it may ask, and its budget."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from parity_models import options
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.dispatch import SINGLE_QUEUE
from parity_models.scheduling.effect import Redundancy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task, Unit


class Erasures(Protocol):
    """A code's size, and what can be decoded, by masks alone; codes.Code fits."""

    @property
    def k(self) -> int:
        """Queries in a group."""

    @property
    def r(self) -> int:
        """Parity queries for each group."""

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return for each of k slots whether its missing prediction can be reconstructed now.

        `available` (k,) marks predictions that have arrived, `parities` (r,) parity outputs.
        """


class Requires(Enum):
    """The stand-ins without which a policy cannot be built."""

    NOTHING = "nothing"
    PARITY = "a parity model"
    BACKUP = "a backup"
    EITHER = "a parity model or a backup"


@dataclass(frozen=True)
class StandIns:
    """The stand-ins of a bundle: parity models for a `code`, and a `backup`."""

    code: Erasures | None = None
    backup: bool = False

    def __bool__(self) -> bool:
        return self.backup or self.code is not None

    def used(self, requires: Requires) -> "StandIns":
        """Return those that a policy uses which requires these."""
        code = self.code if requires in (Requires.PARITY, Requires.EITHER) else None
        return StandIns(code, self.backup and requires in (Requires.BACKUP, Requires.EITHER))


def rows_needed(code: Erasures) -> list[int]:
    """Return how many parity queries reconstruct 1, 2, ... of k queries, the others available."""
    rows = []
    for missing in range(1, code.k + 1):
        available = (False,) * missing + (True,) * (code.k - missing)
        for count in range(1, code.r + 1):
            parities = (True,) * count + (False,) * (code.r - count)
            if all(code.decodable(available, parities)[:missing]):
                rows.append(count)
                break
        else:
            break
    return rows


class Policy:
    """A redundancy policy; by default only originals are sent.

    The scheduler calls the hooks below as queries live, with the port through which the policy
    acts; queries, tasks and units are read-only. A policy serves one scheduler.

    A subclass declares its `name`, its `Options`, and the stand-ins that it `requires`: the models
    of the bundle that `roles` may name.
    """

    name: ClassVar[str]
    requires: ClassVar[Requires] = Requires.NOTHING
    rule: ClassVar[str] = SINGLE_QUEUE
    """The default dispatch rule."""

    asks = StandIns()
    """The stand-ins that it uses, which BackgroundComparison compares with the model."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """No options."""

    @classmethod
    def build(cls, options: Any, stand_ins: StandIns) -> "Policy":
        """Make a policy with these `Options`, and the code or either stand-in if it requires it."""
        make: Callable[..., Policy] = cls
        if cls.requires is Requires.EITHER:
            return make(stand_ins, options)
        return make(stand_ins.code, options) if cls.requires is Requires.PARITY else make(options)

    def __init__(self, options: Any = None) -> None:
        """A policy without options."""

    @property
    def differ(self) -> float | None:
        """The share of all answers that may differ from the model's; None without a budget."""
        return None

    def change_budget(self, differ: float) -> None:
        """Keep to another share of answers that may differ, if the policy has such a budget."""

    def redundancy(self, port: Port) -> Redundancy:
        """Return the state of redundant work, while it is switched on."""
        return Redundancy.ON

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        """Return the roles of each instance: of `instances`, then of the extra ones for redundancy.

        By default all run the deployed model.
        """
        return [frozenset({DEPLOYED})] * (instances + extra)

    def stands_in(self, port: Port) -> bool:
        """Return whether stand-ins answer while no instance of the deployed model does."""
        return False

    def stranded(self, port: Port, query: Query) -> None:
        """No instance of the deployed model answers: ask a stand-in for the query, or answer it
        with an output that has arrived. It has just arrived (then this takes the place of
        `arrived`), was pending when the last instance went, or a stand-in's task for it ended."""

    def arrived(self, port: Port, query: Query) -> None:
        """A query was admitted; its original is queued and is dispatched after this."""

    def on_prediction(self, port: Port, task: Task) -> None:
        """The deployed model's prediction for this task has arrived. It answers the query next,
        unless that is already answered."""

    def starts(self, port: Port, task: Task) -> None:
        """A task of the deployed model is about to run; its instance is known."""

    def redundancy_starts(self, port: Port, task: Task) -> None:
        """A redundant task is about to run."""

    def redundancy_finished(self, port: Port, task: Task) -> None:
        """The output of a redundant task has arrived."""

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        """An instance has ended this unit, `finished` or not."""

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        """The query may crash instances: start no more redundant work with its input.

        A queued task of the backup has been dropped.
        """

    def may_answer(self, port: Port, query: Query) -> bool:
        """Return whether redundant work in flight may still answer this waiting query.

        By default, whether `copies_in_flight` counts any.
        """
        return port.copies_in_flight(query) > 0

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        """The query's instance failed, or its deadline has come: answer it now if possible."""

    def reconstructed(self, port: Port, query: Query, doubt: float) -> None:
        """The query's prediction was reconstructed; it is wrong with the probability `doubt`.

        By default it answers.
        """
        port.answer(query, Source.RECONSTRUCTION, doubt)

    def refused(self, port: Port, query: Query, source: Source) -> None:
        """The output of a stand-in (a backup, or a reconstruction) was rejected for this query."""

    def resolved(self, port: Port, query: Query) -> None:
        """The query has just been answered or failed."""
