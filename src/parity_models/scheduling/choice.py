"""A policy and a dispatch rule as commands, files and applications ask for them: by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

from parity_models.errors import UserError
from parity_models.options import OptionField, Options, Spell, make_options, options_of
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
        _options(self.name, self.options, self.dispatch)

    @property
    def policy(self) -> type[Policy]:
        """The policy's class."""
        return POLICIES.find(self.name)

    @property
    def rule(self) -> type[Dispatch] | None:
        """The class of the dispatch rule, where one is asked for."""
        return None if self.dispatch is None else RULES.find(self.dispatch)

    def written_out(self) -> dict[str, Any]:
        """As in a file: the names, and the value of every option, given or not."""
        options = [each for each in _options(self.name, self.options, self.dispatch) if each]
        values = {name: value for each in options for name, value in asdict(each).items()}
        return {"name": self.name, "dispatch": self.dispatch, **values}

    def build(self, stand_ins: StandIns) -> tuple[Policy, Dispatch]:
        """The policy and its dispatch rule, for one scheduler.

        Raises UserError where the policy needs a stand-in that is not among `stand_ins`.
        """
        if self.policy.needs_code and stand_ins.code is None:
            raise UserError(f"the policy {self.name} needs a code, and there is none")
        if self.policy.needs_stand_in and not stand_ins:
            raise UserError(f"the policy {self.name} needs a code or a backup, and there is none")
        of_policy, of_rule = _options(self.name, self.options, self.dispatch)
        policy = self.policy.build(of_policy, stand_ins)
        return policy, policy.dispatch() if self.rule is None else self.rule.build(of_rule)


def choose(name: str, given: Mapping[str, Any], spell: Spell = str) -> PolicyChoice:
    """The policy `name` with what is given: its options, and `dispatch`.

    `spell` writes an option's name as the user did. Raises UserError as PolicyChoice does.
    """
    options = {option: value for option, value in given.items() if option != "dispatch"}
    dispatch = given.get("dispatch")
    _options(name, options, dispatch, spell)
    return PolicyChoice(name if is_own(name) else POLICIES.find(name).name, options, dispatch)


def declared_options(policy: str, dispatch: str | None = None) -> list[OptionField]:
    """The options of a policy and of a dispatch rule. Raises UserError for other names."""
    return options_of(POLICIES.find(policy).Options) + options_of_rule(dispatch)


def options_of_rule(dispatch: str | None) -> list[OptionField]:
    """The options of a dispatch rule. Raises UserError for another name."""
    return [] if dispatch is None else options_of(RULES.find(dispatch).Options)


def has_option(policy: str, option: str) -> bool:
    """Has the policy an option of this name? Raises UserError for a policy that is not there."""
    return _has(POLICIES.find(policy), option)


def _has(kind: type[Policy] | type[Dispatch], option: str) -> bool:
    return any(declared.name == option for declared in options_of(kind.Options))


def _no_option(name: str, dispatch: str | None, option: str, spell: Spell) -> str:
    """What to say of an option that neither the policy nor the dispatch rule has."""
    said = f"{spell(option)} is no option of the policy {name}"
    if having := [each.name for each in POLICIES if _has(each, option)]:
        whose = ", ".join(having)
        return f"{said} but of {whose}; leave it out or choose another {spell('policy')}"
    if near := get_close_matches(option, [o.name for o in declared_options(name, dispatch)], 1):
        return f"{said}; did you mean {spell(near[0])}?"
    return f"{said}; leave it out or choose another {spell('policy')}"


def _options(
    name: str, options: Mapping[str, Any], dispatch: str | None, spell: Spell = str
) -> tuple[Options, Options | None]:
    """The checked options of the policy and of the dispatch rule."""
    policy = POLICIES.find(name)
    rule = None if dispatch is None else RULES.find(dispatch)
    of_policy, of_rule = {}, {}
    for option, value in options.items():
        if _has(policy, option):
            of_policy[option] = value
        elif rule is not None and _has(rule, option):
            of_rule[option] = value
        else:
            raise UserError(_no_option(name, dispatch, option, spell))
    return (
        make_options(policy.Options, of_policy, spell),
        None if rule is None else make_options(rule.Options, of_rule, spell),
    )
