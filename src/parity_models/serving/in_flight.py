"""Requests in flight, their results, and observers of what is done for them."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.scheduling import Action, Decode, Encode, Run, Verify
from parity_models.serving.errors import RequestError
from parity_models.serving.request_log import RequestLog


class Result(Struct, frozen=True, eq=False):
    """The answers to a request: `outputs` (n, *output shape), and the source of each row."""

    outputs: NDArray[Any]
    sources: Sequence[Source]


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
        """Return a copy of one row, without the tensors of the others and without a caller."""
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
                key: made._replace(output=made.output.copy())
                for source in Source
                if (made := self.outputs.get(key := (query, source))) is not None
            },
        )

    def fail(self, error: RequestError) -> None:
        """End it with this error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class Observer:
    """Hears of events and of the scheduler's actions, with their times (monotonic, in seconds).

    Each method does nothing by default. They run on the thread that serves, so they must be quick.
    """

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        """The scheduler has these actions carried out, from now on."""

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        """An instance is up."""

    def instance_left(self, now: float, instance: str, why: str) -> None:
        """An instance is gone, and its unit with it, which `unit_ended` reported."""

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""

    def encoded(self, began: float, ended: float, action: Encode) -> None:
        """The parity queries of a group have been made, in this time."""

    def decoded(self, began: float, ended: float, action: Decode) -> None:
        """Predictions of a group have been reconstructed, in this time."""

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        """The stand-in with this source may not answer these queries."""

    def headers(self, unit: Run) -> Mapping[str, str]:
        """Return headers for the request that has another server run this unit."""
        return {}
