"""Replies to requests: row by row as the scheduler says, and given once all rows are answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from parity_models.scheduling import Answer, Fail, Reason, Source
from parity_models.serving.asked import Answers, Asked
from parity_models.serving.errors import ERRORS, UnavailableError
from parity_models.serving.metrics import Metrics
from parity_models.serving.poison import Poison


class Replies:
    """Answers `requests`, which are by the ids of their queries, and counts that in `metrics`.

    `default` (*output shape) is the answer where the scheduler says so. Where the deployed model
    has several outputs, stand-ins give the one that is `imitated`. Queries that end instances go to
    `poison`. Times are monotonic, in seconds.
    """

    def __init__(
        self,
        requests: Mapping[int, Asked],
        metrics: Metrics,
        default: NDArray[Any] | None,
        poison: Poison,
        imitated: str | None = None,
    ) -> None:
        self._requests = requests
        self._metrics = metrics
        self._default = default
        self._poison = poison
        self._imitated = imitated

    def answer(self, action: Answer, now: float) -> None:
        """Answer a query."""
        asked = self._requests[action.query]
        row = action.query - asked.first
        if action.source is Source.DEFAULT:
            asked.outputs[row] = self._default
        elif self._imitated is None or action.source is Source.MODEL:
            asked.outputs[row] = asked.at_hand[action.query, action.source]
        else:
            asked.outputs[self._imitated][row] = asked.at_hand[action.query, action.source]
        asked.sources[row] = action.source
        asked.unanswered -= 1
        exemplar = None if asked.request is None else asked.request.exemplar
        self._metrics.latency[action.source].observe(now - asked.arrived, exemplar)
        self._metrics.deadline_margin.observe(max(0.0, asked.due - now))
        if action.source is Source.RECONSTRUCTION:
            self._metrics.reconstructions.inc()
        if not asked.unanswered and not asked.future.done():
            asked.future.set_result(Answers(asked.outputs, asked.sources))

    def fail(self, action: Fail, now: float) -> Sequence[int]:
        """Fail a query, and its request with it; returns the queries that nobody needs now."""
        asked = self._requests[action.query]
        self._metrics.failures.labels(action.reason).inc()
        if action.reason is Reason.POISON:
            self._poison.remember(asked.rows[action.query - asked.first, ...], now)
        if asked.future.done():
            return ()
        text = f"{action.reason}: {action.detail}"
        asked.fail(ERRORS[action.reason](text, retry_after=action.retry_after))
        return asked.queries if len(asked.rows) > 1 else ()

    def stop(self) -> None:
        """Fail all requests that are under way."""
        for asked in set(self._requests.values()):
            asked.fail(UnavailableError("the server was stopped"))
