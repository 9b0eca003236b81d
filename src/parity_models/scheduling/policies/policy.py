"""What a redundancy policy is told, and what it is asked."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from parity_models import options
from parity_models.options import SECONDS, Option
from parity_models.scheduling.actions import DEPLOYED, Source
from parity_models.scheduling.dispatch import Dispatch, SingleQueue
from parity_models.scheduling.front_door import Redundancy
from parity_models.scheduling.policies.erasures import StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task, Unit


class Policy:
    """A redundancy policy: by default, nothing is sent besides the originals.

    The scheduler calls the hooks below as queries live, with the port through which the policy
    acts; queries, tasks and units are only to be read. A policy serves one scheduler.

    A subclass says its `name`, its `Options`, and whether it needs a code, a backup, or any of
    these stand-ins: the models of the bundle that `roles` may name.
    """

    name: ClassVar[str]
    needs_code: ClassVar[bool] = False
    needs_backup: ClassVar[bool] = False
    needs_stand_in: ClassVar[bool] = False

    asks = StandIns()
    """The stand-ins that it asks, compared with the model now and then (BackgroundComparison)."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    @classmethod
    def build(cls, options: Any, stand_ins: StandIns) -> "Policy":
        """A policy with these `Options`, and the code or all stand-ins, where it needs them."""
        make: Callable[..., Policy] = cls
        if cls.needs_stand_in:
            return make(stand_ins, options)
        return make(stand_ins.code, options) if cls.needs_code else make(options)

    def __init__(self, options: Any = None) -> None:
        """A policy without options."""

    def redundancy(self, port: Port) -> Redundancy:
        """Return whether redundant work is sent now, or why not."""
        return Redundancy.ON

    def roles(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        """What each instance runs, given `instances` and the extra ones for redundancy.

        By default all of them run the deployed model.
        """
        return [frozenset({DEPLOYED})] * (instances + parity_instances)

    def dispatch(self) -> Dispatch:
        """The dispatch rule, where none is asked for."""
        return SingleQueue()

    def arrived(self, port: Port, query: Query) -> None:
        """A query was admitted; its original is queued and will be dispatched after this."""

    def on_prediction(self, port: Port, task: Task) -> None:
        """The deployed model's prediction for this task is here; its answer, if it still needs
        one, follows."""

    def starts(self, port: Port, task: Task) -> None:
        """A task of the deployed model is about to run: it is known on which instance."""

    def redundancy_starts(self, port: Port, task: Task) -> None:
        """A task of redundant work is about to run."""

    def redundancy_finished(self, port: Port, task: Task) -> None:
        """The output of a task of redundant work is here."""

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit to its end, or, not `finished`, will run it no further."""

    def inputs_of(self, task: Task) -> Collection[int]:
        """The queries whose input the task carries."""
        return (task.subject,)

    def copies_in_flight(self, port: Port, query: Query) -> int:
        """How many redundant tasks run that carry the query's input."""
        return 0

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        """The query may end instances: start no redundant work with its input any more."""

    def may_answer(self, port: Port, query: Query) -> bool:
        """May redundant work under way still answer this query, which waits for an instance?

        By default what `copies_in_flight` counts may.
        """
        return self.copies_in_flight(port, query) > 0

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        """The query's instance failed or its deadline is here: answer it now if that can be."""

    def refused(self, port: Port, query: Query, source: Source) -> None:
        """What a stand-in (the backup, or a parity model by a reconstruction) says to the query may
        not be its answer, and that of no other either: only the deployed model's own will do."""

    def resolved(self, port: Port, query: Query) -> None:
        """The query has just been answered or failed."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(options.Options):
    """The options of policies that answer from stand-ins."""

    stand_in_delay: Annotated[
        float,
        Option(
            "How long a query waits for the model before a stand-in answers it; 0: whichever is "
            "ready first answers.",
            unit=SECONDS,
            at_least=0,
        ),
    ] = 0.0
