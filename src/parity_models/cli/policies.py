"""The options of commands that take policies."""

from typing import Annotated

from parity_models.cli.common import OWN
from parity_models.options import Option
from parity_models.scheduling.dispatch import RULES
from parity_models.scheduling.policies import POLICIES

PolicyName = Annotated[
    str | None,
    Option(
        f"The policy, as hedging@hedge-delay=5ms: {', '.join(POLICIES.names)}, {OWN}. By default "
        "adaptive if the bundle has a stand-in, else none.",
        metavar="POLICY",
    ),
]
PolicyNames = Annotated[
    list[str] | None,
    Option(
        f"A policy, as hedging@hedge-delay=5ms: {', '.join(POLICIES.names)}, {OWN}; repeatable.",
        metavar="POLICY",
    ),
]
DispatchName = Annotated[
    str | None,
    Option(
        f"The dispatch rule, {' or '.join(RULES)}; by default the policy's own.", metavar="RULE"
    ),
]
