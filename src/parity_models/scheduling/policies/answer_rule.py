"""When a query may be answered from redundant work instead of the deployed model."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.options import SECONDS, Option, Options


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
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
