"""A model on a server of the Open Inference Protocol, as a load asks it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.models.tensor import DATATYPES
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
    InferAnswer,
    ModelMetadata,
    TensorMetadata,
    answer_limit,
    read_response,
    write_request,
)

IDLE_CONNECTION = 2.0
"""Seconds after which an idle connection is not used again: servers close theirs after five."""

Tensors = Mapping[str, NDArray[Any]]
"""The tensors (n, ...) of a request, by input."""


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """The answers to a request: `outputs` (n, *shape) of the output that is judged, and the source
    of each row."""

    outputs: NDArray[Any]
    sources: tuple[Source, ...]


Ask = Callable[[Callable[[], None]], Awaitable[RowAnswers]]
"""Sends a request, and calls its argument right before the request goes out. Raises NoAnswerError.
"""


class NoAnswerError(Exception):
    """A request that was not answered; its message is the kind of error, in a few words."""


class Target:
    """A served model, asked over connections that are kept; for `output` alone, if there is one."""

    def __init__(
        self, client: Client, model: ModelMetadata, binary: bool = True, output: str | None = None
    ) -> None:
        self.model = model
        self.judged = output_of(model, output)
        self._client = client
        self._binary = binary
        self._outputs = () if output is None else (output,)

    def prepare(self, tensors: Tensors) -> Ask:
        """Write a request of `tensors` (n, *shape), by input; calling the result sends it."""
        ordered = {each.name: tensors[each.name] for each in self.model.inputs}
        body, headers = write_request(ordered, self._outputs, binary=self._binary)
        shapes = [array.shape for array in ordered.values()]
        longest = max(max(shape) for shape in shapes)
        values = sum(_values(each, longest) + 1 for each in self.model.outputs)
        limit = answer_limit(shapes[0][0] * values)
        return partial(self._ask, body, headers, shapes[0][0], limit)

    async def _ask(
        self,
        body: bytes,
        headers: dict[str, str],
        rows: int,
        limit: int,
        going_out: Callable[[], None],
    ) -> RowAnswers:
        try:
            content, length = await self._client.ask(
                "POST",
                f"{model_path(self.model.name)}/infer",
                body,
                headers,
                limit=limit,
                going_out=going_out,
            )
            return self.read(read_response(content, length), rows)
        except StatusError as error:
            raise NoAnswerError(f"HTTP {error.status}") from error
        except UnreachableError as error:
            raise NoAnswerError(f"connection: {type(error.__cause__).__name__}") from error
        except (MalformedAnswerError, InvalidRequestError) as error:
            raise NoAnswerError("malformed answer") from error

    def read(self, answer: InferAnswer, rows: int) -> RowAnswers:
        """The answers to a request of `rows` rows.

        Raises InvalidRequestError for an answer that is not what was asked for.
        """
        found = [each for each in answer.outputs if each.name == self.judged.name]
        if len(self.model.outputs) == 1:
            found = list(answer.outputs)
        if not found:
            raise InvalidRequestError(f"there is no output {self.judged.name!r}")
        output = found[-1]
        wanted = (rows, *self.judged.shape[1:])
        if not is_shape(output.shape, wanted):
            raise InvalidRequestError(f"the output has shape {list(output.shape)}")
        return RowAnswers(output.array(), answer.sources(rows))


@asynccontextmanager
async def target(
    url: str,
    model: str,
    binary: bool = True,
    output: str | None = None,
    credentials: Credentials = ANONYMOUS,
) -> AsyncIterator[Target]:
    """The model of the server at `url`, which is shown the `credentials`.

    Raises LoadError if one of them is not there.
    """
    async with Client(url, credentials, keep_alive=IDLE_CONNECTION) as client:
        try:
            about = await client.model(model)
        except StatusError as error:
            text = f"{url} has no model {model!r} (HTTP {error.status}){error.hint}"
            raise LoadError(text) from error
        except MalformedAnswerError as error:
            raise LoadError(
                f"model {model!r} is not described as the protocol says: {error}"
            ) from error
        except ClientError as error:
            raise LoadError(f"no server answers at {url}: {error}") from error
        _check_tensors(about)
        yield Target(client, about, binary, output)


async def find_model(url: str, credentials: Credentials = ANONYMOUS) -> str:
    """The name of the only model of the server at `url`.

    Raises LoadError if there are several, or the server cannot be asked or does not say.
    """
    names: list[str] = []
    async with Client(url, credentials) as client:
        try:
            names = await client.models()
        except StatusError as error:
            if error.hint:
                raise LoadError(f"{url} refuses (HTTP {error.status}){error.hint}") from error
        except UnreachableError as error:
            raise LoadError(f"no server answers at {url}: {error}") from error
        except MalformedAnswerError:
            pass
    if not names:
        raise LoadError(f"{url} does not say which models it has; name one with --model")
    if len(names) > 1:
        raise LoadError(f"{url} has the models {', '.join(names)}; choose one with --model")
    return names[0]


def output_of(model: ModelMetadata, name: str | None) -> TensorMetadata:
    """The output of this name, by default the first. Raises LoadError if there is none."""
    for each in model.outputs:
        if name in (None, each.name):
            return each
    raise LoadError(
        f"model {model.name!r} has no output {name!r}; it has "
        f"{', '.join(each.name for each in model.outputs)}"
    )


def _check_tensors(model: ModelMetadata) -> None:
    """Raises LoadError for tensors that are no rows of numbers."""
    for each in (*model.inputs, *model.outputs):
        if each.datatype not in DATATYPES or not each.shape:
            raise LoadError(
                f"model {model.name!r} has a tensor {each.name!r}, {each.datatype} "
                f"{list(each.shape)}, that is not of rows of numbers"
            )
    if not (model.inputs and model.outputs):
        raise LoadError(f"model {model.name!r} has no inputs, or no outputs")


def _values(tensor: TensorMetadata, longest: int) -> int:
    """Values of a row at the most, where no open axis is longer."""
    return prod(longest if size < 0 else size for size in tensor.shape[1:])


def is_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the shape is the wanted one, where -1 is any size."""
    return len(shape) == len(wanted) and all(
        size == each or each < 0 for size, each in zip(shape, wanted, strict=True)
    )
