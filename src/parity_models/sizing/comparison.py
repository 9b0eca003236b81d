"""Policies compared under one load and the same contention: `simulate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from rich.console import RenderableType

from parity_models.bundle.bundle import Bundle
from parity_models.codes import CodeSpec
from parity_models.errors import UserError, spell
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.dispatch import SINGLE_QUEUE
from parity_models.scheduling.policies import Adaptive, Hedging, NoRedundancy, Parity
from parity_models.simulation.journal import Recording
from parity_models.sizing.scenario import (
    Outcome,
    Scenario,
    SimulationOptions,
    outcome_table,
    service_of,
)

if TYPE_CHECKING:
    from parity_models.fields import SimulationOptionsFields

QUERIES = 100_000

CODE = CodeSpec("stack", "separate", 2)
"""The code of parity models without a bundle."""


@dataclass(frozen=True)
class Compared:
    """A policy with its options and dispatch rule, and its outcome."""

    policy: PolicyChoice
    outcome: Outcome

    @property
    def name(self) -> str:
        """The policy with all options that are not the defaults."""
        name = str(self.policy)
        return name if self.policy.dispatch is None else f"{name}, {self.policy.dispatch}"


@dataclass(frozen=True)
class Comparison(Printed):
    """The simulated policies, the one without redundancy first, and their scenario.

    If policies use a dispatch rule other than the single queue, the policy without redundancy runs
    with that rule, too. Its gain is due to the rule alone. `recorded` is the outcome in a journal,
    and `replayed` says whether its events still lead to the same actions.
    """

    scenario: Scenario
    policies: tuple[Compared, ...]
    recorded: Outcome | None = None
    replayed: str = ""

    @property
    def parts(self) -> Sequence[RenderableType]:
        """A table, and the dispatch rule's part of each gain."""
        scenario, without = self.scenario, self.policies[0].outcome
        title = (
            f"{scenario.instances:,} instances, {scenario.queries:,} queries at "
            f"{scenario.rate:,.4g} per second"
        )
        alone = {x.policy.rule: x for x in self.policies if x.policy.name == NoRedundancy.name}
        said = []
        for each in self.policies:
            gain, rule = without.p99_ms - each.outcome.p99_ms, each.policy.rule
            if rule != SINGLE_QUEUE and each is not alone[rule] and gain > 0:
                of_rule = max(0.0, min(gain, without.p99_ms - alone[rule].outcome.p99_ms))
                said.append(
                    f"{each.name}: p99 is {gain:.1f} ms lower than without redundancy; "
                    f"{of_rule:.1f} ms of that comes from the dispatch rule, {rule}."
                )
        rows = [] if self.recorded is None else [("as recorded", self.recorded, ())]
        rows += [(each.name, each.outcome, ()) for each in self.policies]
        return [outcome_table(title, rows), *said, *filter(None, [self.replayed])]


def simulate(
    bundle: Bundle | Path | str | None = None,
    /,
    *,
    policies: Sequence[str | PolicyChoice] | None = None,
    journal: Path | str | None = None,
    options: SimulationOptions | None = None,
    **given: Unpack["SimulationOptionsFields"],
) -> Comparison:
    """Simulate policies under one load and the same contention.

    The scheduler of the server drives simulated instances. 10,000 of them and a million queries
    take a minute or two for each policy.

    Args:
        bundle: The bundle to be served, or its folder. Without one, give `service_time`. There is a
            backup if `backup_time` is given, otherwise parity models for k=2 that take as long as
            the model.
        policies: Names, with options as hedging@hedge-delay=5ms, or choices. By default hedging,
            and parity and adaptive if there are stand-ins for them.
        journal: The journal of a server, whose load and slow instances the policies meet, and whose
            policy is simulated, too.
        options: All options as a SimulationOptions, instead of fields by name.
        **given: Fields of SimulationOptions: workload, cluster and service; times in seconds.

    Returns:
        The outcome of each policy, and of no redundancy. It prints as a table.

    Raises:
        UserError: For options out of range, for a policy whose stand-in the bundle does not have,
            and if no query is answered.
    """
    chosen = gather(SimulationOptions, options, given)
    service = service_of(bundle, chosen, CODE if chosen.backup_time is None else None)
    recording = None if journal is None else Recording(journal)
    parity = [Parity.name] * (service.stand_ins.code is not None)
    usual = [Hedging.name, *parity, *[Adaptive.name] * bool(service.stand_ins)]
    asked = [
        each if isinstance(each, PolicyChoice) else PolicyChoice.parse(each)
        for each in policies or usual
    ]
    if recording is not None:
        asked.insert(0, recording.header.choice)
    if chosen.differ is not None:
        if not any(each.has_budget for each in asked):
            raise UserError(f"{spell('differ')} is for the policy {Adaptive.name}; leave it out")
        asked = [each.within(chosen.differ) if each.has_budget else each for each in asked]
    baselines = [
        PolicyChoice(NoRedundancy.name, dispatch=None if rule == SINGLE_QUEUE else rule)
        for rule in dict.fromkeys([SINGLE_QUEUE, *(each.rule for each in asked)])
    ]
    if recording is None:
        count = chosen.queries or QUERIES
        scenario = Scenario.of(service, chosen, queries=count, seed=chosen.seed)
    else:
        workload, batch = recording.workload(), recording.header.config.max_batch
        scenario = Scenario.recorded(service, workload, batch, chosen.seed)
    choices = {repr(each): each for each in [*baselines, *asked]}.values()
    compared = tuple(Compared(each, scenario.outcome(each)) for each in choices)
    if recording is None:
        return Comparison(scenario, compared)
    differing = recording.replay(service.stand_ins)
    replayed = f"Replayed {len(recording.lines):,} events with the same actions."
    if differing is not None:
        replayed = (
            f"Replayed, the actions differ from {differing.name} at {differing.time:.3f} on: "
            "the journal is of another bundle or version, or its beginning is gone."
        )
    return Comparison(scenario, compared, scenario.measure(workload.result), replayed)
