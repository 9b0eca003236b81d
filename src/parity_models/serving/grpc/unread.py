"""Answers that are on their way to clients, which may not read them.

Such an answer counts against the budget of bytes. gRPC waits for its client for as long as the
connection lives, and offers a server no way to end the call. So the connection is closed under it,
and with it whatever else it carries.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from grpc.aio import ServicerContext

from parity_models.serving.grpc.connections import Connections
from parity_models.serving.limits import ByteBudget

LEAST_RATE = 64 * 2**10
"""Bytes of an answer, a second, for which a client gets time beyond the write timeout."""

_log = logging.getLogger(__name__)


class UnreadAnswers:
    """Bounds for how long answers stay unread. `write_timeout` in seconds; `ended` is told of each
    of the `connections` that is closed."""

    def __init__(
        self,
        budget: ByteBudget,
        write_timeout: float,
        connections: Connections,
        ended: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._connections = connections
        self._write_timeout = write_timeout
        self._ended = ended

    def sent(self, context: ServicerContext[Any, Any], size: int) -> None:
        """The call is answered with so many bytes, from now on."""
        self._budget.hold(size)
        answer = _Answer(context, size)
        self._wait(answer)
        # grpc's stubs name a class of callbacks, where it takes any function.
        context.add_done_callback(lambda _: self._over(answer))  # type: ignore[arg-type]

    def _wait(self, answer: "_Answer") -> None:
        seconds = self._write_timeout + answer.size / LEAST_RATE
        answer.timer = asyncio.get_running_loop().call_later(seconds, self._late, answer)

    def _late(self, answer: "_Answer") -> None:
        self._wait(answer)  # where it cannot be closed now
        if self._connections.close(answer.context.peer()):
            self._ended()
        else:
            _log.warning("an answer is not read, and its connection is not found")

    def _over(self, answer: "_Answer") -> None:
        answer.timer.cancel()  # which lets go of the answer, so that it is gone at once
        self._budget.give_back(answer.size)


class _Answer:
    """An answer of so many bytes to a call."""

    timer: asyncio.TimerHandle

    def __init__(self, context: ServicerContext[Any, Any], size: int) -> None:
        self.context = context
        self.size = size
