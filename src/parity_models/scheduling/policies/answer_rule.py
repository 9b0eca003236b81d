"""When a query is answered from something else than the deployed model."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from parity_models.options import SECONDS, Option, Options


class AnswerRule(StrEnum):
    """When a query that can be answered from redundant work is."""

    FIRST = "first"
    """At once: whichever is ready first."""
    DEADLINE = "deadline"
    """The model's own prediction until `answer_after` has passed, the other answer then."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """The options of policies that answer from stand-ins."""

    answer: Annotated[
        AnswerRule,
        Option(
            "When a reconstruction or the backup's prediction is the answer: if it is ready "
            "first, or only once the query has waited for --answer-after."
        ),
    ] = AnswerRule.FIRST
    answer_after: Annotated[
        float,
        Option(
            "How long a query waits for the model before a stand-in answers.",
            unit=SECONDS,
            at_least=0,
            needs=("answer", AnswerRule.DEADLINE),
        ),
    ] = 0.0

    @property
    def delay(self) -> float:
        """Seconds after its arrival before which a stand-in answers no query."""
        return self.answer_after if self.answer is AnswerRule.DEADLINE else 0.0
