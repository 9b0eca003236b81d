"""Whoever answers a load's queries."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from parity_models.load.wire import RowAnswers
from parity_models.models.tensor import TensorSpec

Ask = Callable[[Callable[[], None]], Awaitable[RowAnswers]]
"""Sends a request, and calls what it is given right before the request goes out. It raises
NoAnswerError."""


class NoAnswerError(Exception):
    """A request that was not answered; its message is the kind of error, in a few words."""


class Target(Protocol):
    """A model that can be asked."""

    @property
    def input(self) -> TensorSpec: ...

    @property
    def output(self) -> TensorSpec: ...

    def prepare(self, rows: NDArray[Any]) -> Ask:
        """What sends a request of `rows` (n, *input shape) when it is called.

        All that can be done beforehand has been.
        """
        ...
