"""The model that a load asks on a server of the Open Inference Protocol, and the queries."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError, UserError, spell
from parity_models.load.spec import LoadSpec
from parity_models.roles import Source
from parity_models.serving.client import (
    TOKEN,
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
    read_response,
    write_request,
)
from parity_models.tasks.metrics import load_labels
from parity_models.tensors.queries import (
    LABELS,
    fit_tensors,
    read_arrays,
    rows_in,
    sizes_in,
    take,
)
from parity_models.tensors.signature import DATATYPES, Batch, Tensor

Answers = tuple[NDArray[Any], tuple[Source, ...]]
"""Outputs (n, *shape) of the judged output, and the source of each row."""

Ask = Callable[[Callable[[], None]], Awaitable[Answers]]
"""Sends a request, and calls its argument right before the request goes out. Raises an error if it
is not answered."""

MAX_ANSWER = 2**28
"""Maximum size, in bytes, of an answer."""


class Target:
    """A served model. Requests ask for the outputs that stand-ins give, or else for all; the first
    one is judged.

    Raises LoadError if the model has tensors that are not rows of numbers or texts.
    """

    def __init__(self, client: Client, model: ModelMetadata, binary: bool) -> None:
        for each in (*model.inputs, *model.outputs):
            if each.datatype not in DATATYPES or not each.shape:
                raise LoadError(
                    f"model {model.name!r} has a tensor {each.name!r}, {each.datatype} "
                    f"{list(each.shape)}, that is not rows of numbers or texts"
                )
        if not (model.inputs and model.outputs):
            raise LoadError(f"model {model.name!r} has no inputs, or no outputs")
        self.model = model
        self.inputs = tuple(map(_tensor, model.inputs))
        given = tuple(each for each in model.outputs if each.name not in model.exact_outputs)
        self.outputs = given or model.outputs
        self.judged: TensorMetadata = self.outputs[0]
        self._client = client
        self._binary = binary

    def prepare(self, tensors: Mapping[str, NDArray[Any]]) -> Ask:
        """Write a request of `tensors` (n, *shape), by input; calling the result sends it."""
        ordered = {each.name: tensors[each.name] for each in self.model.inputs}
        names = [each.name for each in self.outputs] if self.model.exact_outputs else ()
        body, headers = write_request(ordered, names, binary=self._binary)
        rows = rows_in(ordered)

        async def ask(going_out: Callable[[], None]) -> Answers:
            path = f"{model_path(self.model.name)}/infer"
            content, length = await self._client.ask(
                "POST", path, body, headers, limit=MAX_ANSWER, going_out=going_out
            )
            return self._read(content, length, rows)

        return ask

    def _read(self, content: bytes, length: str | None, rows: int) -> Answers:
        answer = read_response(content, length)
        only = len(self.outputs) == 1
        found = [each for each in answer.outputs if only or each.name == self.judged.name]
        shape, wanted = found[-1].shape if found else (), (rows, *self.judged.shape[1:])
        if len(shape) != len(wanted) or any(
            -1 != each != size for size, each in zip(shape, wanted, strict=True)
        ):
            raise InvalidRequestError(f"there is no output {self.judged.name!r} of this shape")
        return found[-1].array(), answer.sources(rows)


@asynccontextmanager
async def target(
    url: str,
    model: str | None = None,
    binary: bool = True,
) -> AsyncIterator[Target]:
    """Connect to a model of the server at `url`, by default the only one, with the credentials of
    the environment.

    Raises:
        LoadError: The server cannot be reached, or does not have the model.
    """
    async with Client(url, Credentials.of_environment()) as client:
        asked = f"model {model!r}" if model else "its models"
        try:
            names = [model] if model else await client.models()
            if len(names) != 1:
                has = f"the models {', '.join(names)}" if names else "no model"
                raise LoadError(f"{url} has {has}; choose one with {spell('model')}")
            about = await client.model(names[0])
        except StatusError as error:
            text = f"{url} has no {asked}" if model else f"{url} does not say which models it has"
            if error.status == 401:
                text += f"; set the variable {TOKEN} to a token that the server accepts"
            raise LoadError(f"{text} (HTTP {error.status})") from error
        except MalformedAnswerError as error:
            raise LoadError(
                f"{asked} is not described as the protocol says: {error}; name one with "
                f"{spell('model')}"
            ) from error
        except ClientError as error:
            raise LoadError(f"no server answers at {url}: {error}") from error
        yield Target(client, about, binary)


def kind_of(error: Exception) -> str:
    """Return the kind of an error of a request, in a few words."""
    match error:
        case TimeoutError():
            return "timeout"
        case StatusError():
            return f"HTTP {error.status}"
        case UnreachableError():
            return f"connection: {type(error.__cause__).__name__}"
        case MalformedAnswerError() | InvalidRequestError():
            return "malformed answer"
    return f"unexpected: {type(error).__name__}"


def _tensor(each: TensorMetadata) -> Tensor:
    sizes = enumerate(each.shape[1:])
    shape = tuple(size if size >= 0 else f"{each.name}.{i}" for i, size in sizes)
    return Tensor(each.name, each.datatype, shape)


# Queries


@dataclass(frozen=True)
class Queries:
    """Inputs (n, ...) of the model, by name, and labels (n,), classes, or None."""

    inputs: Batch
    tensors: Sequence[Tensor]
    labels: NDArray[Any] | None

    @classmethod
    def read(cls, spec: LoadSpec, target: Target) -> "Queries":
        """Read a load's inputs, an .npy or an .npz file, and its labels: by default those of that
        file, if it has some.

        Raises UserError for files that cannot be read, or do not fit the model or each other.
        """
        arrays = read_arrays(Path(spec.inputs), labels=True)
        labels: Any = spec.labels or arrays.get(LABELS)
        arrays = {name: arrays[name] for name in arrays if name != LABELS}
        if "inputs" in arrays and len(target.inputs) == 1:
            arrays = {"inputs": arrays["inputs"]}
        inputs = fit_tensors(arrays, target.inputs, spec.inputs)
        if not rows_in(inputs):
            raise LoadError(f"{spec.inputs} has no rows of inputs")
        if labels is not None:
            output, shape = target.judged.name, target.judged.shape[1:]
            if len(shape) != 1 or shape[0] in (-1, 1):
                raise LoadError(
                    f"output {output!r} of shape {['n', *shape]} does not have a fixed number of "
                    "scores, one for each class, so labels cannot judge it; leave them out"
                )
            try:
                labels = load_labels(labels, "top-1", rows_in(inputs), shape)
            except UserError as error:
                raise LoadError(f"the labels do not fit the model: {error}") from error
        return cls(inputs, target.inputs, labels)

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the queries with these numbers, cut to the length of the longest of them along
        open axes; axes that are equally long in the file are cut alike."""
        taken = take(self.inputs, rows)
        sizes, most = sizes_in(taken, self.tensors), dict[int, int]()
        for each in self.tensors:
            for axis, at in each.axes.items():
                full = taken[each.name].shape[at + 1]
                most[full] = max(most.get(full, 1), int(sizes[axis].max()))
        for each in self.tensors:
            for at in each.axes.values():
                array = taken[each.name]
                taken[each.name] = np.split(array, [most[array.shape[at + 1]]], at + 1)[0]
        return taken
