"""A policy and a dispatch rule, chosen by name in commands, files and programs."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from parity_models.errors import UserError, spell
from parity_models.options import declared_in
from parity_models.roles import DEPLOYED
from parity_models.scheduling.dispatch import RULES, Dispatch
from parity_models.scheduling.policies import (
    POLICIES,
    Adaptive,
    Erasures,
    Policy,
    Requires,
    StandIns,
)

DIFFER = next(each.option for each in declared_in(Adaptive.Options) if each.name == "differ")
"""The option of the share of all answers that may differ from the model's."""

DIFFER_OR_DEFAULT = replace(DIFFER, help=f"{DIFFER.help} By default {Adaptive.Options.differ:g}.")
"""The option where the policy's default applies."""


@dataclass(frozen=True)
class PolicyChoice:
    """A policy, its options and a dispatch rule, as names and plain values.

    `options` has only the given ones, with times in seconds. If `dispatch` is None, the
    policy chooses. Raises UserError for unknown names, for options that the policy does not have,
    and for values out of range.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dispatch: str | None = None

    def __post_init__(self) -> None:
        POLICIES.options(self.name, self.options)
        if self.dispatch is not None and self.dispatch not in RULES:
            raise UserError(
                f"there is no dispatch rule {self.dispatch!r}; there are {', '.join(RULES)}"
            )

    @classmethod
    def parse(cls, policy: str, dispatch: str | None = None) -> "PolicyChoice":
        """Parse a policy such as hedging@hedge-delay=5ms.

        Raises UserError as PolicyChoice does.
        """
        return cls(*POLICIES.read(policy), dispatch)

    def __str__(self) -> str:
        declared = {each.name: each for each in declared_in(self.policy.Options)}
        given = [
            f"{name.replace('_', '-')}={declared[name].write(value)}"
            for name, value in self.options.items()
        ]
        return f"{self.name}@{','.join(given)}" if given else self.name

    @property
    def policy(self) -> type[Policy]:
        """The policy's class."""
        return POLICIES.find(self.name)

    @property
    def rule(self) -> str:
        """The name of the dispatch rule."""
        return self.dispatch or self.policy.rule

    @property
    def has_budget(self) -> bool:
        """True if the policy has a budget of answers that may differ from the model's."""
        return any(each.name == "differ" for each in declared_in(self.policy.Options))

    def within(self, differ: float | None) -> "PolicyChoice":
        """Return the choice with this budget of answers that may differ; None: as it is.

        Raises UserError if the policy has no such budget, or if the choice already says one.
        """
        if differ is None:
            return self
        if "differ" in self.options:
            raise UserError(f"give {spell('differ')} or {self}, not both")
        return replace(self, options={**self.options, "differ": differ})

    def written_out(self) -> dict[str, Any]:
        """Return the names and all options' values, defaults included, to write to a file."""
        options = asdict(POLICIES.options(self.name, self.options))
        return {"name": self.name, "dispatch": self.dispatch, **options}

    def build(self, stand_ins: StandIns) -> tuple[Policy, Dispatch]:
        """Return the policy and its dispatch rule, for one scheduler.

        Raises UserError if the policy requires a stand-in that is not among `stand_ins`.
        """
        requires = self.policy.requires
        if requires is not Requires.NOTHING and not stand_ins.used(requires):
            is_backup = requires is Requires.BACKUP
            command = (
                "backup --model BUNDLE --network linear" if is_backup else "parity --model BUNDLE"
            )
            raise UserError(
                f"the policy {self.name} needs {requires.value}, and there is none; make one with "
                f"`parm {command} --out BUNDLE`, or choose another policy"
            )
        policy = self.policy.build(POLICIES.options(self.name, self.options), stand_ins)
        return policy, Dispatch(self.rule)


def extra_instances(
    choice: PolicyChoice, policy: Policy, instances: int, given: int | None, code: Erasures | None
) -> int:
    """Return how many of all `instances` run stand-ins only: those `given`, else r of k + r, and 0
    with a policy that has no such instances.

    Raises:
        UserError: None would be left for the deployed model.

    """
    if all(DEPLOYED in roles for roles in policy.roles(1, 1)):
        return 0
    k, r = (2, 1) if code is None else (code.k, code.r)
    extra = given or max(1, round(instances * r / (k + r)))
    if extra >= instances:
        raise UserError(
            f"the policy {choice.name} has stand-ins on instances of their own: {extra} of "
            f"{instances} leave none for the model; give more {spell('instances')}"
        )
    return extra
