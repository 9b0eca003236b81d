"""The options of commands that take policies: `--policy`, `--dispatch`, and what these declare."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from parity_models.cli.extensions import OWN, flag_of, given_options, naming
from parity_models.options import Spell
from parity_models.scheduling.choice import PolicyChoice, choose, has_option
from parity_models.scheduling.dispatch import RULES
from parity_models.scheduling.policies import POLICIES

KINDS: dict[str, Any] = {"policy": POLICIES, "dispatch": RULES}
"""The kinds of extensions whose flags such a command has."""

PolicyName = Annotated[
    str | None,
    typer.Option(
        help="What is sent besides the originals; by default adaptive if the bundle has a "
        f"stand-in, else none. One of {', '.join(POLICIES.names)}, {OWN}.",
        metavar="POLICY",
        show_default=False,
        callback=naming(POLICIES),
    ),
]
DispatchName = Annotated[
    str | None,
    typer.Option(
        help="Which instance runs what; by default the policy's own choice. One of "
        f"{', '.join(RULES.names)}, {OWN}.",
        metavar="RULE",
        show_default=False,
        callback=naming(RULES),
    ),
]


def policy_options(context: typer.Context) -> dict[str, Any]:
    """The options of policies and rules that were given; times in seconds."""
    return given_options(context, *KINDS)


def choose_policy(
    name: str, given: Mapping[str, Any], dispatch: str | None, spell: Spell = flag_of
) -> PolicyChoice:
    """The policy `name` with the options given on the command line, or as `spell` says.

    Raises UserError as `choose` does.
    """
    return choose(name, {**given, "dispatch": dispatch}, spell)


def choose_policies(
    names: Sequence[str], given: Mapping[str, Any], dispatch: str | None
) -> list[PolicyChoice]:
    """The policies `names`, each with those of the options that it has.

    Raises UserError as `choose` does, and for an option that none of the policies has.
    """
    shared = {option for option in given for name in names if has_option(name, option)}
    return [
        choose_policy(
            name,
            {k: v for k, v in given.items() if k not in shared or has_option(name, k)},
            dispatch,
        )
        for name in names
    ]
