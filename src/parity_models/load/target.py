"""Whoever answers a load's queries."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from parity_models.load.wire import ModelMetadata, RowAnswers, Tensors

Ask = Callable[[Callable[[], None]], Awaitable[RowAnswers]]
"""Sends a request, and calls what it is given right before the request goes out. It raises
NoAnswerError."""


class NoAnswerError(Exception):
    """A request that was not answered; its message is the kind of error, in a few words."""


class Target(Protocol):
    """A model that can be asked."""

    @property
    def model(self) -> ModelMetadata: ...

    def prepare(self, tensors: Tensors) -> Ask:
        """What sends a request of `tensors` (n, *shape), by input, when it is called.

        All that can be done beforehand has been.
        """
        ...
