"""Queries straight to a frontend in this process: policies and workers, without HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from numpy.typing import NDArray

from parity_models.load.spec import Direct
from parity_models.load.target import Ask, NoAnswerError
from parity_models.load.wire import RowAnswers
from parity_models.models.bundle import open_bundle
from parity_models.serving.errors import RequestError
from parity_models.serving.server import Server


class DirectTarget:
    """The frontend of a server that is up."""

    def __init__(self, server: Server) -> None:
        self._frontend = server.frontend
        self.input, self.output = server.model.input, server.model.output

    def prepare(self, rows: NDArray[Any]) -> Ask:
        return partial(self._infer, rows)

    async def _infer(self, rows: NDArray[Any], going_out: Callable[[], None]) -> RowAnswers:
        going_out()
        try:
            answers = await self._frontend.infer(rows)
        except RequestError as error:
            raise NoAnswerError(type(error).__name__.removesuffix("Error").lower()) from error
        return RowAnswers(answers.outputs, tuple(answers.sources))


@asynccontextmanager
async def direct_target(direct: Direct) -> AsyncIterator[DirectTarget]:
    """Serve the bundle in this process while the context lasts. Raises what `Server` raises."""
    async with Server(open_bundle(direct.bundle), direct.options) as server:
        yield DirectTarget(server)
