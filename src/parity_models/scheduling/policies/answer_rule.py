"""When a query is answered from something else than the deployed model."""

from enum import StrEnum


class AnswerRule(StrEnum):
    """When a query that can be answered from redundant work is."""

    FIRST = "first"
    """At once: whichever is ready first."""
    DEADLINE = "deadline"
    """The model's own prediction until `answer_after` has passed, the other answer then."""
