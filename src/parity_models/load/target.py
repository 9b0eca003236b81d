"""The model that a load asks on a server of the Open Inference Protocol, and the queries."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, LoadError
from parity_models.models.queries import LABELS
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
from parity_models.tasks import METRICS, check_labels

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
    """A served model, asked for all of its outputs, of which the first is judged.

    Raises LoadError if the model has tensors that are not rows of numbers.
    """

    def __init__(self, client: Client, model: ModelMetadata, binary: bool) -> None:
        for each in (*model.inputs, *model.outputs):
            if each.datatype not in DATATYPES or not each.shape:
                raise LoadError(
                    f"model {model.name!r} has a tensor {each.name!r}, {each.datatype} "
                    f"{list(each.shape)}, that is not of rows of numbers"
                )
        if not (model.inputs and model.outputs):
            raise LoadError(f"model {model.name!r} has no inputs, or no outputs")
        self.model = model
        self.judged: TensorMetadata = model.outputs[0]
        self._client = client
        self._binary = binary

    def prepare(self, tensors: Mapping[str, NDArray[Any]]) -> Ask:
        """Write a request of `tensors` (n, *shape), by input; calling the result sends it."""
        ordered = {each.name: tensors[each.name] for each in self.model.inputs}
        body, headers = write_request(ordered, binary=self._binary)
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
        yield Target(client, about, binary)


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


# Queries


@dataclass(frozen=True)
class Queries:
    """Inputs (n, ...) by name, and labels (n, ...) in the same order or None.

    `open_axes` are the axes of no fixed size, each as the inputs that have it and where (0 is the
    batch axis).
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    open_axes: Sequence[Sequence[tuple[str, int]]] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @classmethod
    def read(cls, path: str, labels: str | None = None) -> "Queries":
        """Read an .npy file of inputs, or an .npz file with `inputs`, or else an array per input.

        Args:
            path: The file.
            labels: An .npy file of labels; by default the .npz file's `labels`, if it has them.

        Raises:
            LoadError: The files cannot be read or do not fit each other.

        """
        arrays = _read(path)
        own_labels = arrays.pop(LABELS, None)
        if "inputs" in arrays:
            arrays = {"inputs": arrays["inputs"]}
        if labels is not None:
            found = _read(labels)
            own_labels = found[LABELS] if LABELS in found else next(iter(found.values()), None)
        counts = {len(each) if each.ndim else 0 for each in arrays.values()}
        if not counts or 0 in counts:
            raise LoadError(f"{path} has no rows of inputs")
        if len(counts) > 1:
            raise LoadError(f"{path} has inputs of unequal numbers of rows: {sorted(counts)}")
        rows = counts.pop()
        if own_labels is not None and (own_labels.ndim == 0 or len(own_labels) != rows):
            raise LoadError(
                f"there are {rows} inputs, but {own_labels.size} labels; each needs its own"
            )
        return cls(arrays, own_labels)

    def fitting(self, target: Target, metric: str) -> "Queries":
        """Return the queries under the names that the target's model has for its inputs.

        Raises:
            LoadError: The model takes other inputs, or `metric` and the labels cannot judge the
                output.

        """
        inputs, specs = self.inputs, target.model.inputs
        if len(specs) == len(inputs) == 1:
            inputs = {specs[0].name: next(iter(inputs.values()))}
        names = [each.name for each in specs]
        if sorted(names) != sorted(inputs):
            raise LoadError(
                f"the model takes {', '.join(names)}, but the queries are {', '.join(inputs)}"
            )
        axes: dict[int, list[tuple[str, int]]] = {}
        for each in specs:
            rows, dtype = inputs[each.name], DATATYPES[each.datatype]
            if rows.dtype != dtype or not is_shape(rows.shape, each.shape):
                raise LoadError(
                    f"the model takes rows of {dtype} {list(each.shape[1:])}, but the queries are "
                    f"of {rows.dtype} {list(rows.shape[1:])}; convert them"
                )
            for at, size in enumerate(each.shape):
                if at and size < 0:  # those of one size in the file are taken for one
                    axes.setdefault(rows.shape[at], []).append((each.name, at))
        if metric not in METRICS:
            raise LoadError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
        if self.labels is not None:
            output = target.judged
            if -1 in output.shape[1:]:
                raise LoadError(
                    f"output {output.name!r} has no fixed shape, so that labels cannot judge it; "
                    "leave them out"
                )
            row = np.zeros((1, *output.shape[1:]), DATATYPES[output.datatype])
            try:
                check_labels(metric, row, self.labels[:1])
            except DataError as error:
                raise LoadError(f"the labels do not fit the model: {error}") from error
        return Queries(inputs, self.labels, list(axes.values()))

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the queries with these numbers, cut to the length of the longest of them."""
        taken = {name: array[rows] for name, array in self.inputs.items()}
        for axis in self.open_axes:
            longest = max(_used(taken[name], at) for name, at in axis)
            for name, at in axis:
                taken[name] = taken[name][(slice(None),) * at + (slice(longest),)]
        return taken


def _used(array: NDArray[Any], axis: int) -> int:
    """Return the length of an axis without the zeros that pad it; 1 at least."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    used = np.flatnonzero((array != 0).any(axis=others))
    return int(used[-1]) + 1 if used.size else 1


def _read(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, or the array of an .npy file as "inputs"."""
    try:
        # Mapped, not read: each of several processes has the file open.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"inputs": loaded}
        with loaded as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise LoadError(
            f"{path} is neither an .npy file nor an .npz file with inputs: {error}"
        ) from error
