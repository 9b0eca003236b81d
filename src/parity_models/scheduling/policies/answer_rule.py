"""When a query may be answered from redundant work instead of the deployed model."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from parity_models.options import SECONDS, Option, Options


class AnswerRule(StrEnum):
    """When a query is answered that can be answered from redundant work."""

    FIRST = "first"
    """At once: by the answer that is ready first."""
    DEADLINE = "deadline"
    """Until `answer_after` has passed only by the model's own prediction, then by either."""


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
