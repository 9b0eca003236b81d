"""A request under way in the frontend, its answers, and what they are asked of."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from msgspec import Struct
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models.serving.errors import RequestError
from parity_models.serving.request_log import RequestLog


class Answers(Struct, frozen=True, eq=False):
    """The answers to a request: `outputs` (n, *output shape), and the source of each row."""

    outputs: NDArray[Any]
    sources: Sequence[Source]


class Answerer(Protocol):
    """What REST and gRPC need of a Frontend."""

    @property
    def ready(self) -> bool:
        """Would a query be answered?"""

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered a golden query wrongly, the latest last."""

    async def infer(
        self, rows: NDArray[Any], timeout: float | None, *, tenant: str | None, exact: bool
    ) -> Answers:
        """Answer a query per row of `rows` (n, *input shape), as Frontend.infer does."""


class Asked(Struct, eq=False):
    """A request under way; its `future` is of Answers, or of a RequestError.

    Query `first + i` is its row i. What a query can be answered with, or decoded from, is
    `at_hand` by its id and the source; `ran_on` is the instance that made it.
    """

    first: int
    arrived: float
    rows: NDArray[Any]
    outputs: NDArray[Any]
    future: asyncio.Future[Answers]
    unanswered: int
    due: float
    request: RequestLog | None
    sources: list[Source]
    tenant: str | None = None
    at_hand: dict[tuple[int, Source], NDArray[Any]] = {}
    ran_on: dict[tuple[int, Source], str] = {}

    @property
    def queries(self) -> range:
        return range(self.first, self.first + len(self.rows))

    def alone(self, row: int) -> "Asked":
        """One row of it, copied, that nobody waits for: what it keeps is its own."""
        query, only = self.first + row, slice(row, row + 1)
        nobody: asyncio.Future[Answers] = self.future.get_loop().create_future()
        nobody.cancel()
        here = [key for key in ((query, source) for source in Source) if key in self.at_hand]
        return Asked(
            first=query,
            arrived=self.arrived,
            rows=self.rows[only].copy(),
            outputs=self.outputs[only].copy(),
            future=nobody,
            unanswered=1,
            due=self.due,
            request=self.request,
            sources=self.sources[only],
            tenant=self.tenant,
            at_hand={key: self.at_hand[key].copy() for key in here},
            ran_on={key: self.ran_on[key] for key in here if key in self.ran_on},
        )

    def fail(self, error: RequestError) -> None:
        """End it with this error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
