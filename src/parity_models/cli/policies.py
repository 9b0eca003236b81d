"""The options of commands that take policies."""

from typing import Annotated

from parity_models.cli.common import OWN
from parity_models.options import Option
from parity_models.scheduling.dispatch import RULES
from parity_models.scheduling.policies import POLICIES

PolicyName = Annotated[
    str | None,
    Option(
        "The redundancy policy; by default adaptive if the bundle has a stand-in, else none. One "
        f"of {', '.join(POLICIES.names)}, {OWN}. Its options follow an @, as "
        "hedging@hedge-delay=5ms,hedge-budget=0.2.",
        metavar="POLICY",
    ),
]
PolicyNames = Annotated[
    list[str] | None,
    Option(
        "A policy to simulate; may be given several times. One of "
        f"{', '.join(POLICIES.names)}, {OWN}. Its options follow an @, as hedging@hedge-delay=5ms.",
        metavar="POLICY",
    ),
]
DispatchName = Annotated[
    str | None,
    Option(
        f"The dispatch rule, {' or '.join(RULES)}; by default the policy's own.",
        metavar="RULE",
    ),
]
