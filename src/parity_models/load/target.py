"""A model on a server of the Open Inference Protocol, as a load asks it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.models.signature import DATATYPES
from parity_models.roles import Source
from parity_models.serving.client import (
    ANONYMOUS,
    Client,
    ClientError,
    Credentials,
    MalformedAnswerError,
    StatusError,
    UnreachableError,
    model_path,
)
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import (
    ModelMetadata,
    TensorMetadata,
    answer_limit,
    read_response,
    write_request,
)

IDLE_CONNECTION = 2.0
"""Seconds after which an idle connection is not used again: servers close theirs after five."""


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """The answers to a request: `outputs` (n, *shape) of the judged output, and a source a row."""

    outputs: NDArray[Any]
    sources: tuple[Source, ...]


Ask = Callable[[Callable[[], None]], Awaitable[RowAnswers]]
"""Sends a request, and calls its argument right before the request goes out. Raises NoAnswerError.
"""


class NoAnswerError(Exception):
    """A request that was not answered; its message is the kind of error, in a few words."""


class Target:
    """A served model, asked for all of its outputs, or `output` alone; that or the first is judged.

    Raises LoadError if the model has no such output, or tensors that are not rows of numbers.
    """

    def __init__(
        self, client: Client, model: ModelMetadata, binary: bool, output: str | None
    ) -> None:
        for each in (*model.inputs, *model.outputs):
            if each.datatype not in DATATYPES or not each.shape:
                raise LoadError(
                    f"model {model.name!r} has a tensor {each.name!r}, {each.datatype} "
                    f"{list(each.shape)}, that is not of rows of numbers"
                )
        if not (model.inputs and model.outputs):
            raise LoadError(f"model {model.name!r} has no inputs, or no outputs")
        outputs = {each.name: each for each in model.outputs}
        if output is not None and output not in outputs:
            raise LoadError(
                f"model {model.name!r} has no output {output!r}; it has {', '.join(outputs)}"
            )
        self.model = model
        self.judged: TensorMetadata = model.outputs[0] if output is None else outputs[output]
        self._client = client
        self._binary = binary
        self._outputs = () if output is None else (output,)

    def prepare(self, tensors: Mapping[str, NDArray[Any]]) -> Ask:
        """Write a request of `tensors` (n, *shape), by input; calling the result sends it."""
        ordered = {each.name: tensors[each.name] for each in self.model.inputs}
        body, headers = write_request(ordered, self._outputs, binary=self._binary)
        rows = len(tensors[self.model.inputs[0].name])
        # No open axis of an output is taken to be longer than the longest of an input.
        longest = max(max(array.shape) for array in tensors.values())
        shapes = [each.shape[1:] for each in self.model.outputs]
        values = sum(1 + prod(longest if n < 0 else n for n in shape) for shape in shapes)

        async def ask(going_out: Callable[[], None]) -> RowAnswers:
            try:
                content, length = await self._client.ask(
                    "POST",
                    f"{model_path(self.model.name)}/infer",
                    body,
                    headers,
                    limit=answer_limit(rows * values),
                    going_out=going_out,
                )
                return self._read(content, length, rows)
            except StatusError as error:
                raise NoAnswerError(f"HTTP {error.status}") from error
            except UnreachableError as error:
                raise NoAnswerError(f"connection: {type(error.__cause__).__name__}") from error
            except (MalformedAnswerError, InvalidRequestError) as error:
                raise NoAnswerError("malformed answer") from error

        return ask

    def _read(self, content: bytes, length: str | None, rows: int) -> RowAnswers:
        answer = read_response(content, length)
        only = len(self.model.outputs) == 1
        found = [each for each in answer.outputs if only or each.name == self.judged.name]
        if not found or not is_shape(found[-1].shape, (rows, *self.judged.shape[1:])):
            raise InvalidRequestError(f"there is no output {self.judged.name!r} of this shape")
        return RowAnswers(found[-1].array(), answer.sources(rows))


@asynccontextmanager
async def target(
    url: str,
    model: str | None = None,
    binary: bool = True,
    output: str | None = None,
    credentials: Credentials = ANONYMOUS,
) -> AsyncIterator[Target]:
    """Connect to a model of the server at `url`, by default the only one.

    Raises:
        LoadError: The server cannot be asked, or does not have the model.

    """
    async with Client(url, credentials, keep_alive=IDLE_CONNECTION) as client:
        asked = f"model {model!r}" if model else "its models"
        try:
            about = await client.model(model or _only(url, await client.models()))
        except StatusError as error:
            text = f"{url} has no {asked}" if model else f"{url} does not say which models it has"
            raise LoadError(f"{text} (HTTP {error.status}){error.hint}") from error
        except MalformedAnswerError as error:
            raise LoadError(
                f"{asked} is not described as the protocol says: {error}; name one with --model"
            ) from error
        except ClientError as error:
            raise LoadError(f"no server answers at {url}: {error}") from error
        yield Target(client, about, binary, output)


def _only(url: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    has = f"the models {', '.join(names)}" if names else "no model"
    raise LoadError(f"{url} has {has}; choose one with --model")


def is_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether the shape is the wanted one, where -1 is any size."""
    return len(shape) == len(wanted) and all(
        size == each or each < 0 for size, each in zip(shape, wanted, strict=True)
    )
