"""Policies and dispatch rules by name, as commands and experiment files ask for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any

from parity_models.errors import UserError
from parity_models.scheduling.dispatch import (
    Dispatch,
    LatencyAware,
    PowerOfTwoChoices,
    RoundRobin,
    SingleQueue,
)
from parity_models.scheduling.policies import (
    AdaptiveParity,
    AnswerRule,
    ApproximateBackup,
    EqualResources,
    Erasures,
    Hedging,
    NoRedundancy,
    Parity,
    Policy,
    Pool,
    Replication,
)


class PolicyName(StrEnum):
    """The redundancy policies."""

    NONE = "none"
    EQUAL_RESOURCES = "equal-resources"
    REPLICATION = "replication"
    HEDGING = "hedging"
    APPROXIMATE_BACKUP = "approximate-backup"
    PARITY = "parity"
    ADAPTIVE_PARITY = "adaptive-parity"

    @property
    def needs_code(self) -> bool:
        return self in (PolicyName.PARITY, PolicyName.ADAPTIVE_PARITY)


_ANSWER = ("answer", "answer_after")

OPTIONS: dict[PolicyName, frozenset[str]] = {
    PolicyName.NONE: frozenset(),
    PolicyName.EQUAL_RESOURCES: frozenset(),
    PolicyName.REPLICATION: frozenset({"copies"}),
    PolicyName.HEDGING: frozenset({"hedge_delay", "hedge_quantile", "hedge_budget"}),
    PolicyName.APPROXIMATE_BACKUP: frozenset(_ANSWER),
    PolicyName.PARITY: frozenset({"pool", "max_group_wait", "parity_delay", *_ANSWER}),
    PolicyName.ADAPTIVE_PARITY: frozenset(),
}
"""The fields of PolicySpec that a policy reads, besides `dispatch`, which all do."""


class DispatchName(StrEnum):
    """The dispatch rules."""

    SINGLE_QUEUE = "single-queue"
    ROUND_ROBIN = "round-robin"
    TWO_CHOICES = "two-choices"
    LATENCY_AWARE = "latency-aware"


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """A policy with its options; those of other policies are ignored. Times in seconds.

    `dispatch` None: the policy's own choice. Raises UserError for values out of range.
    """

    name: PolicyName
    dispatch: DispatchName | None = None
    pool: Pool = Pool.SHARED
    max_group_wait: float = 0.01
    parity_delay: float = 0.0
    answer: AnswerRule = AnswerRule.FIRST
    answer_after: float = 0.0
    copies: int = 2
    hedge_delay: float | None = None
    hedge_quantile: float = 0.95
    hedge_budget: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_group_wait", "parity_delay", "answer_after"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.copies < 2:
            raise UserError(f"copies must be 2 or more, got {self.copies}")
        if self.hedge_delay is not None and not 0 < self.hedge_delay < inf:
            raise UserError(f"hedge_delay must be above 0, got {self.hedge_delay}")
        if not 0 < self.hedge_quantile < 1:
            raise UserError(f"hedge_quantile must be between 0 and 1, got {self.hedge_quantile}")
        if not 0 < self.hedge_budget < inf:
            raise UserError(f"hedge_budget must be above 0, got {self.hedge_budget}")

    def build(self, code: Erasures | None) -> tuple[Policy, Dispatch]:
        """The policy and its dispatch rule, for one scheduler.

        Raises UserError where the policy needs a code and there is none.
        """
        policy = self._policy(code)
        return policy, policy.dispatch() if self.dispatch is None else _RULES[self.dispatch]()

    def _policy(self, code: Erasures | None) -> Policy:
        match self.name:
            case PolicyName.NONE:
                return NoRedundancy()
            case PolicyName.EQUAL_RESOURCES:
                return EqualResources()
            case PolicyName.REPLICATION:
                return Replication(self.copies)
            case PolicyName.HEDGING:
                return Hedging(
                    delay=self.hedge_delay, quantile=self.hedge_quantile, budget=self.hedge_budget
                )
            case PolicyName.APPROXIMATE_BACKUP:
                return ApproximateBackup(answer_rule=self.answer, answer_after=self.answer_after)
        if code is None:
            raise UserError(f"the policy {self.name} needs a code, and there is none")
        if self.name is PolicyName.ADAPTIVE_PARITY:
            return AdaptiveParity(code)
        return Parity(
            code,
            pool=self.pool,
            max_group_wait=self.max_group_wait,
            parity_delay=self.parity_delay,
            answer_rule=self.answer,
            answer_after=self.answer_after,
        )


def policy_spec(
    name: PolicyName, options: Mapping[str, Any], spell: Callable[[str], str] = str
) -> PolicySpec:
    """The policy `name` with these options, fields of PolicySpec; `spell` writes a field's name as
    the user did.

    Raises UserError for an option that the policy does not have or that says nothing beside
    another, and for values out of range.
    """
    for option in options:
        if option not in OPTIONS[name] and option != "dispatch":
            having = ", ".join(other for other in PolicyName if option in OPTIONS[other])
            raise UserError(
                f"{spell(option)} is no option of the policy {name} but of {having}; leave it out "
                f"or choose another {spell('policy')}"
            )
    if "answer_after" in options and options.get("answer") is not AnswerRule.DEADLINE:
        raise UserError(f"{spell('answer_after')} needs {spell('answer')} deadline beside it")
    if {"hedge_delay", "hedge_quantile"} <= options.keys():
        raise UserError(f"give {spell('hedge_delay')} or {spell('hedge_quantile')}, not both")
    return PolicySpec(name=name, **options)


_RULES: dict[DispatchName, Callable[[], Dispatch]] = {
    DispatchName.SINGLE_QUEUE: SingleQueue,
    DispatchName.ROUND_ROBIN: RoundRobin,
    DispatchName.TWO_CHOICES: PowerOfTwoChoices,
    DispatchName.LATENCY_AWARE: LatencyAware,
}
