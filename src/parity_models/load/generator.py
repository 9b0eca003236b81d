"""Sends a load's requests when they are due, and keeps the outcome of each."""

import asyncio
import os
import selectors
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from parity_models.load.result import LoadResult
from parity_models.load.spec import LoadSpec
from parity_models.load.target import Ask, Queries, Target, kind_of, target
from parity_models.roles import SOURCES
from parity_models.serving.garbage import freeze_modules
from parity_models.tensors.queries import rows_in

LEAD = 0.1
"""Seconds from the last preparation to the load's start."""
PATIENCE = 1.0
"""Seconds to wait for answers once the load is being stopped."""
NOT_SENT = -1

T = TypeVar("T")


def run_precisely(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that offers a load in a process that does nothing else: requests go out on
    time, with a real-time priority if the system allows it."""
    with suppress(AttributeError, OSError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    freeze_modules()
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        return runner.run(main)


async def offer_load(
    spec: LoadSpec,
    started: Callable[[], None] | None = None,
    *,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Offer the whole load from this process.

    Args:
        spec: The load.
        started: Called when the first counted query is due.
        stop: Ends the load once it is set; the result has the queries sent until then.

    Returns:
        The outcome of every counted query.

    Raises:
        LoadError: The server or its model cannot be found, or the queries do not fit it.
    """
    async with target(spec.url, spec.model, spec.binary) as asked:
        load = Load(spec, Queries.read(spec, asked), asked)
        await load.run(started, stop or asyncio.Event())
    return load.result()


class Load:
    """The requests of a load, and the outcome of each, in order of arrival.

    Arrays are (m,) by request, and (m, batch) by query.
    """

    def __init__(self, spec: LoadSpec, queries: Queries, target: Target) -> None:
        self._spec, self._queries, self._target = spec, queries, target
        self._due = spec.due
        self._rows = np.random.default_rng((spec.seed, 1)).integers(
            rows_in(queries.inputs), size=(len(spec.due), spec.batch)
        )
        self._send_delay, self._latency = np.full((2, len(self._due)), np.nan)
        self._score = np.full(self._rows.shape, np.nan)
        self._outcome = np.full(self._rows.shape, NOT_SENT, np.int16)
        self._outcomes = {str(source): code for code, source in enumerate(SOURCES)}
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self, started: Callable[[], None] | None, stop: asyncio.Event) -> None:
        """Send every request when it is due, and wait until all have ended.

        `started` is called when the first counted request is due. Once `stop` is set, send no more,
        and wait PATIENCE for answers.
        """
        sending = asyncio.create_task(self._send_all(started))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if sending.done():
            sending.result()
            return
        sending.cancel()
        await asyncio.wait((sending, *self._in_flight), timeout=PATIENCE)
        for task in self._in_flight:
            task.cancel()
        await asyncio.wait((sending, *self._in_flight))

    def result(self) -> LoadResult:
        """Return the outcomes of the counted queries that were due before the load ended."""
        warm_up, batch = self._spec.warm_up_requests, self._spec.batch
        counted = warm_up + np.flatnonzero(self._outcome[warm_up:, 0] != NOT_SENT)
        return LoadResult(
            scheduled=np.repeat(self._due[counted] - self._due[warm_up], batch),
            send_delay=np.repeat(self._send_delay[counted], batch),
            latency=np.repeat(self._latency[counted], batch),
            score=self._score[counted].ravel(),
            outcome=self._outcome[counted].ravel(),
            outcomes=np.array(list(self._outcomes)),
        )

    async def _send_all(self, started: Callable[[], None] | None) -> None:
        """Send every request, and wait until all have ended."""
        loop = asyncio.get_running_loop()
        limit = self._spec.connections
        for request, due in enumerate((loop.time() + LEAD + self._due).tolist()):
            ask = self._target.prepare(self._queries.take(self._rows[request]))
            await asyncio.sleep(due - loop.time())
            if started is not None and request == self._spec.warm_up_requests:
                started()
            if len(self._in_flight) >= limit:
                self._fail(request, f"not sent, {limit} in flight")
                continue
            task = asyncio.create_task(self._send(request, due, ask))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def _send(self, request: int, due: float, ask: Ask) -> None:
        loop = asyncio.get_running_loop()

        def going_out() -> None:
            self._send_delay[request] = loop.time() - due

        try:
            async with asyncio.timeout_at(due + self._spec.timeout):
                try:
                    outputs, sources = await ask(going_out)
                finally:
                    self._latency[request] = loop.time() - due
        except asyncio.CancelledError:
            self._fail(request, "interrupted")
        except Exception as error:  # every query that was sent must be in the result
            self._fail(request, kind_of(error))
        else:
            self._outcome[request] = [self._outcomes[source] for source in sources]
            self._judge(request, outputs)

    def _judge(self, request: int, outputs: NDArray[Any]) -> None:
        labels = self._queries.labels
        if labels is not None:
            self._score[request] = outputs.argmax(axis=1) == labels[self._rows[request]]

    def _fail(self, request: int, kind: str) -> None:
        self._outcome[request] = self._outcomes.setdefault(kind, len(self._outcomes))
