"""A request in flight, its result, and the interface that the protocols ask for predictions."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import RequestError
from parity_models.serving.request_log import RequestLog


class Result(Struct, frozen=True, eq=False):
    """The answers to a request: `outputs` (n, *output shape), and the source of each row."""

    outputs: NDArray[Any]
    sources: Sequence[Source]


class Predictor(Protocol):
    """Answers queries; a Frontend does."""

    @property
    def ready(self) -> bool:
        """Whether a query would be answered."""

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered a golden query wrongly, the latest last."""

    async def infer(
        self, rows: NDArray[Any], timeout: float | None, *, tenant: str | None, exact: bool
    ) -> Result:
        """Answer a query per row of `rows` (n, *input shape), as Frontend.infer does."""


class Made(NamedTuple):
    """An output (*shape), the instance that made it, and the tenant of the query."""

    output: NDArray[Any]
    instance: str
    tenant: str | None = None


class InFlight(Struct, eq=False):
    """A request in flight; its `future` is of a Result, or of a RequestError.

    Query `first + i` is its row i. `outputs` are what a query can be answered with, or decoded
    from, by its id and the source.
    """

    first: int
    arrived: float
    rows: NDArray[Any]
    answers: NDArray[Any]
    future: asyncio.Future[Result]
    unanswered: int
    due: float
    request: RequestLog | None
    sources: list[Source]
    tenant: str | None = None
    outputs: dict[tuple[int, Source], Made] = {}

    @property
    def queries(self) -> range:
        return range(self.first, self.first + len(self.rows))

    def detach_row(self, row: int) -> "InFlight":
        """Return a copy of one row, which nobody waits for, so that it does not keep the others."""
        query, only = self.first + row, slice(row, row + 1)
        cancelled: asyncio.Future[Result] = self.future.get_loop().create_future()
        cancelled.cancel()
        return InFlight(
            first=query,
            arrived=self.arrived,
            rows=self.rows[only].copy(),
            answers=self.answers[only].copy(),
            future=cancelled,
            unanswered=1,
            due=self.due,
            request=self.request,
            sources=self.sources[only],
            tenant=self.tenant,
            outputs={
                (query, source): made._replace(output=made.output.copy())
                for source in Source
                if (made := self.outputs.get((query, source))) is not None
            },
        )

    def fail(self, error: RequestError) -> None:
        """End it with this error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
