"""Queries straight to a frontend in this process: policies and workers, without HTTP."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from numpy.typing import NDArray

from parity_models.load.spec import Direct
from parity_models.load.target import Ask, NoAnswerError
from parity_models.load.wire import ModelMetadata, OpenTensor, RowAnswers, Tensors
from parity_models.models.bundle import open_bundle
from parity_models.models.named_inputs import cut, padded, sizes_along
from parity_models.serving.errors import RequestError
from parity_models.serving.server import Server


class DirectTarget:
    """The frontend of a server that is up, asked for `output` alone, if there is one."""

    def __init__(self, server: Server, output: str | None) -> None:
        self._frontend = server.frontend
        self._served = server.model
        about = self._served.metadata
        inputs, outputs = (
            tuple(OpenTensor(each.name, each.datatype, each.shape[1:]) for each in tensors)
            for tensors in (about.inputs, about.outputs)
        )
        self.model = ModelMetadata(about.name, inputs, outputs)
        self._judged = self.model.output(output).name
        wanted = [each for each in self._served.signature.outputs if output in (None, each.name)]
        self._exact = self._served.is_exact(wanted)

    def prepare(self, tensors: Tensors) -> Ask:
        signature = self._served.signature
        sizes = sizes_along(tensors, signature)
        return partial(self._infer, padded(tensors, signature, sizes), sizes)

    async def _infer(
        self, rows: NDArray[Any], sizes: Sequence[int], going_out: Callable[[], None]
    ) -> RowAnswers:
        going_out()
        try:
            answers = await self._frontend.infer(rows, exact=self._exact)
        except RequestError as error:
            raise NoAnswerError(type(error).__name__.removesuffix("Error").lower()) from error
        outputs = cut(answers.outputs, self._served.signature, sizes)[self._judged]
        return RowAnswers(outputs, tuple(answers.sources))


@asynccontextmanager
async def direct_target(direct: Direct, output: str | None) -> AsyncIterator[DirectTarget]:
    """Serve the bundle in this process while the context lasts. Raises what `Server` raises."""
    async with Server(open_bundle(direct.bundle, direct.allow_code), direct.options) as server:
        yield DirectTarget(server, output)
