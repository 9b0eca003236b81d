"""A policy and a dispatch rule as commands, files and programs ask for them: by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

from parity_models.errors import UserError
from parity_models.options import Options, declared_in
from parity_models.registry import is_own
from parity_models.scheduling.dispatch import RULES, Dispatch
from parity_models.scheduling.policies import POLICIES, Policy, StandIns


@dataclass(frozen=True)
class PolicyChoice:
    """A policy by name, its options, and a dispatch rule by name; plain values, as in a file.

    `options` are those that are given, of the policy and of the rule; times in seconds. `dispatch`
    None: the policy's own choice. Raises UserError for names that are not there, options that
    neither has, and values out of range.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dispatch: str | None = None

    def __post_init__(self) -> None:
        _ = self._settings

    @classmethod
    def parse(cls, policy: str, dispatch: str | None = None) -> "PolicyChoice":
        """Return the choice that texts such as hedging@hedge-delay=5ms stand for.

        Raises UserError as PolicyChoice does.
        """
        name, options = POLICIES.read(policy)
        if dispatch is not None:
            dispatch, more = RULES.read(dispatch)
            options = {**options, **more}
        return cls(name, options, dispatch)

    def __str__(self) -> str:
        declared = {each.name: each for each in declared_in(self.policy.Options)}
        given = [
            f"{name.replace('_', '-')}={declared[name].write(value)}"
            for name, value in self.options.items()
            if name in declared
        ]
        return f"{self.name}@{','.join(given)}" if given else self.name

    @property
    def policy(self) -> type[Policy]:
        """The policy's class."""
        return POLICIES.find(self.name)

    @property
    def _rule(self) -> type[Dispatch] | None:
        return None if self.dispatch is None else RULES.find(self.dispatch)

    @property
    def _settings(self) -> tuple[Options, Options | None]:
        """The checked options of the policy and of the dispatch rule."""
        rule, of_policy, of_rule = self._rule, dict(self.options), {}
        if rule is not None:
            own = {each.name for each in declared_in(self.policy.Options)}
            names = [each.name for each in declared_in(rule.Options)]
            for name in self.options:
                if name not in own and get_close_matches(name, names, 1):
                    of_rule[name] = of_policy.pop(name)
        settings = POLICIES.options(self.name, of_policy)
        return settings, None if rule is None else RULES.options(str(self.dispatch), of_rule)

    def written_out(self) -> dict[str, Any]:
        """Return the names, and the value of every option, given or not, as in a file."""
        values = {n: v for each in self._settings if each for n, v in asdict(each).items()}
        return {"name": self.name, "dispatch": self.dispatch, **values}

    def build(self, stand_ins: StandIns) -> tuple[Policy, Dispatch]:
        """Return the policy and its dispatch rule, for one scheduler.

        Raises UserError where the policy needs a stand-in that is not among `stand_ins`.
        """
        if self.policy.needs_code and stand_ins.code is None:
            raise UserError(f"the policy {self.name} needs a code, and there is none")
        if self.policy.needs_stand_in and not stand_ins:
            raise UserError(f"the policy {self.name} needs a code or a backup, and there is none")
        if self.policy.needs_backup and not stand_ins.backup:
            raise UserError(
                f"the policy {self.name} needs a backup, and there is none: a parity model does "
                "not answer a query of its own"
            )
        of_policy, of_rule = self._settings
        policy = self.policy.build(of_policy, stand_ins)
        return policy, policy.dispatch() if self._rule is None else self._rule(of_rule)


def choose(name: str, given: Mapping[str, Any]) -> PolicyChoice:
    """Return the policy `name` with what is given: its options, and `dispatch`.

    Raises UserError as PolicyChoice does.
    """
    options = {option: value for option, value in given.items() if option != "dispatch"}
    canonical = name if is_own(name) else POLICIES.find(name).name
    return PolicyChoice(canonical, options, given.get("dispatch"))
