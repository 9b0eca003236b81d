"""The hooks of a redundancy policy."""

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
    """A redundancy policy; by default only originals are sent.

    The scheduler calls the hooks below as queries live, with the port through which the policy
    acts; queries, tasks and units are read-only. A policy serves one scheduler.

    A subclass declares its `name`, its `Options`, and whether it needs a code, a backup, or any
    stand-in: the models of the bundle that `roles` may name.
    """

    name: ClassVar[str]
    needs_code: ClassVar[bool] = False
    needs_backup: ClassVar[bool] = False
    needs_stand_in: ClassVar[bool] = False

    asks = StandIns()
    """The stand-ins that it uses, which BackgroundComparison compares with the model."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    @classmethod
    def build(cls, options: Any, stand_ins: StandIns) -> "Policy":
        """Make a policy with these `Options`, and the code or all stand-ins if it needs them."""
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
        """Return the roles of each instance: of `instances`, then of the extra ones for redundancy.

        By default all run the deployed model.
        """
        return [frozenset({DEPLOYED})] * (instances + parity_instances)

    def dispatch(self) -> Dispatch:
        """Return the default dispatch rule."""
        return SingleQueue()

    def arrived(self, port: Port, query: Query) -> None:
        """A query was admitted; its original is queued and is dispatched after this."""

    def on_prediction(self, port: Port, task: Task) -> None:
        """The deployed model's prediction for this task is here; it answers the query next, unless
        that is answered."""

    def starts(self, port: Port, task: Task) -> None:
        """A task of the deployed model is about to run; its instance is known."""

    def redundancy_starts(self, port: Port, task: Task) -> None:
        """A redundant task is about to run."""

    def redundancy_finished(self, port: Port, task: Task) -> None:
        """The output of a redundant task is here."""

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        """An instance has ended this unit, `finished` or not."""

    def inputs_of(self, task: Task) -> Collection[int]:
        """Return the queries whose inputs the task contains."""
        return (task.subject,)

    def copies_in_flight(self, port: Port, query: Query) -> int:
        """Return how many running redundant tasks contain the query's input."""
        return 0

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        """The query may crash instances: start no more redundant work with its input."""

    def may_answer(self, port: Port, query: Query) -> bool:
        """Return whether redundant work in flight may still answer this waiting query.

        By default, whether `copies_in_flight` counts any.
        """
        return self.copies_in_flight(port, query) > 0

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        """The query's instance failed or its deadline is here: answer it now if possible."""

    def refused(self, port: Port, query: Query, source: Source) -> None:
        """The output of a stand-in (a backup, or a reconstruction) was rejected for this query."""

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
