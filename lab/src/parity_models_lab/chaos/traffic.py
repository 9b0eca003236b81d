"""Open-loop load from clients of all kinds, each of whose requests is in the ledger."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import numpy as np
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import HEADER_LENGTH, read_response
from parity_models_lab.chaos.clients import (
    BrokenError,
    GrpcClients,
    GrpcError,
    HttpAnswer,
    HttpClients,
    UnreadError,
)
from parity_models_lab.chaos.known_model import KnownModel
from parity_models_lab.chaos.ledger import Ending, Kind, Ledger, Sent
from parity_models_lab.chaos.requests import Drawn, Mix, draw, http_request

SLACK = 5.0
"""Seconds beyond its deadline within which a query must have ended, on a machine that is busy."""
READ = 0.01
"""Seconds in which what has come is read, where a query should have ended."""
MEMORY = 2.0
"""Seconds for which an instance that has stopped lying may still be heard of."""


class Traffic:
    """Sends requests at `rate` a second while it is `running`, as `mix` says, in `phase`.

    `deadline`: the server's, in seconds. `liar_until`: while an instance may lie, and infinity
    while it does. `breaks`: whether connections may break because of what goes on.
    """

    def __init__(
        self,
        model: KnownModel,
        http: HttpClients,
        grpc: GrpcClients | None,
        ledger: Ledger,
        *,
        rate: float,
        seed: int,
        deadline: float,
    ) -> None:
        self._model = model
        self._http = http
        self._grpc = grpc
        self._ledger = ledger
        self._seed = seed
        self._deadline = deadline
        self._gaps = Random(f"{seed}/arrivals")
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.rate = rate
        self.mix = Mix()
        self.phase = ""
        self.liar_until = 0.0
        self.breaks = False

    def lies_begin(self) -> None:
        self.liar_until = float("inf")

    def lies_end(self) -> None:
        """Answers on their way may still be a liar's, and so may reconstructions from them."""
        self.liar_until = _now() + MEMORY

    async def run(self, until: "asyncio.Event") -> None:
        """Send until told otherwise; answers may still be on their way when it returns."""
        due = _now()
        while not until.is_set():
            due += self._gaps.expovariate(self.rate)
            wait = due - _now()
            if wait > 0.0005:
                try:
                    await asyncio.wait_for(until.wait(), wait)
                except TimeoutError:
                    pass
                else:
                    return
            self.send(due)

    def send(self, due: float, drawn: Drawn | None = None) -> "asyncio.Task[None]":
        """Send the next request, which is due at `due`, or this one in its place."""
        self._number += 1
        number = self._number
        if drawn is None:
            drawn = draw(number, self._seed, self.mix, self._model, self._deadline)
        limit = min(self._deadline, drawn.timeout or self._deadline) + SLACK
        by = "gRPC" if drawn.grpc and self._grpc is not None else "HTTP"
        self._ledger.sent(number, Sent(drawn.kind, self.phase, drawn.queries, due, due + limit, by))
        task = asyncio.create_task(self._ask(number, drawn, limit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self) -> None:
        """Wait until every request has ended, or is overdue."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _ask(self, number: int, drawn: Drawn, limit: float) -> None:
        breaks = self.breaks
        # What has come counts, where this process is the one that was held up and reads it late.
        waits = (limit, READ) if drawn.patience is None else (drawn.patience,)
        asking = asyncio.ensure_future(
            self._ask_grpc(self._grpc, number, drawn)
            if self._grpc is not None and drawn.grpc
            else self._ask_http(number, drawn)
        )
        for seconds in waits:
            await asyncio.wait((asking,), timeout=seconds)
        asking.cancel()
        try:
            await asking
        except (asyncio.CancelledError, UnreadError) as error:
            if drawn.patience is not None:
                self._ledger.cut(number, _now())
            else:
                unread = isinstance(error, UnreadError)
                self._ledger.without_end(number, _now(), unread=unread)
        except (BrokenError, InvalidRequestError) as error:
            expected = breaks or self.breaks
            self._ledger.broken(number, _now(), str(error), expected=expected)

    async def _ask_http(self, number: int, drawn: Drawn) -> None:
        request = http_request(drawn, number, self._http.authority)
        answer = await self._http.ask(request, say_if_unread=True)
        if answer.status != 200 or drawn.rows is None:
            if answer.status == 200:
                self._ledger.answered(number, _now(), [False], [Source.MODEL], lied_to=False)
            else:
                self._ledger.refused(number, _now(), answer.status, error_text(answer))
            return
        rows = len(drawn.rows)
        given = read_response(answer.body, answer.headers.get(HEADER_LENGTH))
        if f'"id":"{number}"'.encode() not in answer.body:
            raise InvalidRequestError("the answer is another's")
        (output,) = given.outputs
        self._answered(number, drawn, output.array(), list(given.sources(rows)))

    async def _ask_grpc(self, clients: GrpcClients, number: int, drawn: Drawn) -> None:
        answer = await clients.infer(drawn, number)
        if isinstance(answer, GrpcError):
            self._ledger.refused(number, _now(), answer.status, answer.text)
        else:
            self._answered(number, drawn, *answer)

    def _answered(
        self, number: int, drawn: Drawn, outputs: NDArray[np.float32], sources: list[Source]
    ) -> None:
        assert drawn.rows is not None
        now = _now()
        right = self._model.right(drawn.rows, outputs).tolist()
        lied_to = now < self.liar_until
        self._ledger.answered(number, now, right, sources, lied_to=lied_to, exact=drawn.exact)


@asynccontextmanager
async def offered(traffic: Traffic) -> AsyncIterator[None]:
    """Requests are sent while the context lasts; all have ended when it is left."""
    over = asyncio.Event()
    sending = asyncio.create_task(traffic.run(over))
    try:
        yield
    finally:
        over.set()
        await sending
    await traffic.settle()


async def answers_at_once(traffic: Traffic, ledger: Ledger, drawn: Drawn) -> float | None:
    """Ask one query of a server; seconds until its right answer, or None if there was none."""
    began = _now()
    page = ledger.page(traffic.phase)
    before = page.count(Ending.RIGHT)
    await traffic.send(began, drawn)
    return _now() - began if page.count(Ending.RIGHT) > before else None


def probe(model: KnownModel) -> Drawn:
    """A query by which a server is tried."""
    return Drawn(Kind.HONEST, model.rows[:1])


def error_text(answer: HttpAnswer) -> str:
    """What the server says is wrong."""
    text = answer.body[:300].decode(errors="replace")
    return text.removeprefix('{"error":"').removesuffix('"}')


def _now() -> float:
    return asyncio.get_running_loop().time()
