"""Events of a Late."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from parity_models.roles import Source

EventName = Literal["start", "answer", "failure", "refusal", "comparison"]


class LateEvent(NamedTuple):
    """An event: a call, a copy or the stand-in was started; the caller was answered; a call or a
    copy failed; the stand-in's output may not answer; or it was compared with the model's.

    Attributes:
        event: The name of the event.
        source: What it is about: the model, a copy or the backup.
        kind: The kind of the call.
        reason: The class of the error of a failure; the reason of a refusal; "agreed" or
            "disagreed" for a comparison, followed by "late" if the call was late.
        seconds: The time since the call was made; 0 for a comparison.

    """

    event: EventName
    source: Source
    kind: str
    reason: str = ""
    seconds: float = 0.0


OnEvent = Callable[[LateEvent], Any]
