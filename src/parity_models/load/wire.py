"""The Open Inference Protocol over REST as a lean client speaks it.

Tensors are JSON, or binary data (the protocol's binary tensor data extension). Written apart
from `serving/`, so that what measures a server shares no code, and no mistake, with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.models.tensor import DATATYPES, TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.http.answer_size import JSON_VALUE, MAX_HEAD

HEADER_LENGTH = "Inference-Header-Content-Length"


class MalformedAnswerError(ValueError):
    """An answer that does not follow the protocol or does not fit the model."""


class OpenTensor(NamedTuple):
    """An input or output as a server describes it: the `shape` of a row, where -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return DATATYPES[self.datatype]

    def values(self, longest: int) -> int:
        """Values of a row at the most, where no open axis is longer."""
        return prod(longest if size < 0 else size for size in self.shape)


@dataclass(frozen=True)
class ModelMetadata:
    """A model as its server describes it."""

    name: str
    inputs: tuple[OpenTensor, ...]
    outputs: tuple[OpenTensor, ...]

    @classmethod
    def of(cls, name: str, input: TensorSpec, output: TensorSpec) -> "ModelMetadata":
        """A model with one input and one output."""
        (one, other) = (
            OpenTensor(each.name, each.datatype, each.shape) for each in (input, output)
        )
        return cls(name, (one,), (other,))

    def output(self, name: str | None) -> OpenTensor:
        """The output of this name, by default the first. Raises LoadError if there is none."""
        for each in self.outputs:
            if name in (None, each.name):
                return each
        raise LoadError(
            f"model {self.name!r} has no output {name!r}; it has "
            f"{', '.join(each.name for each in self.outputs)}"
        )

    @property
    def path(self) -> str:
        """Where its infer requests go."""
        return f"/v2/models/{self.name}/infer"


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """The answers to a request: `outputs` (n, *shape) of the output that is judged, and where each
    row came from."""

    outputs: NDArray[Any]
    sources: tuple[Source, ...]


Tensors = Mapping[str, NDArray[Any]]
"""The tensors (n, ...) of a request, by input."""


class RequestWriter:
    """Writes infer requests, with `binary` data or JSON both ways; of `output` alone, if there is
    one."""

    def __init__(
        self, model: ModelMetadata, binary: bool = True, output: str | None = None
    ) -> None:
        self._model = model
        self._binary = binary
        self._asked: dict[str, Any] = {}
        if binary:
            self._asked["parameters"] = {"binary_data_output": True}
        if output is not None:
            self._asked["outputs"] = [{"name": output}]
        self._heads: dict[tuple[tuple[int, ...], ...], bytes] = {}

    def rows(self, rows: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a request for rows (n, *input shape) of a model with one input."""
        return self.request({self._model.inputs[0].name: rows})

    def request(self, tensors: Tensors) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a request for these tensors, of the model's datatypes.

        Headers are the same for tensors of the same shapes.
        """
        arrays = [tensors[each.name] for each in self._model.inputs]
        if not self._binary:
            described = [
                {**self._described(each, array), "data": array.ravel().tolist()}
                for each, array in zip(self._model.inputs, arrays, strict=True)
            ]
            body = msgspec.json.encode({"inputs": described, **self._asked})
            return body, {"Content-Type": "application/json"}
        shapes = tuple(array.shape for array in arrays)
        head = self._heads.get(shapes)
        if head is None:
            head = self._heads[shapes] = self._head(arrays)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        return b"".join([head, *(array.tobytes() for array in arrays)]), headers

    def _head(self, arrays: Sequence[NDArray[Any]]) -> bytes:
        described = []
        for each, array in zip(self._model.inputs, arrays, strict=True):
            parameters = {"binary_data_size": array.nbytes}
            described.append({**self._described(each, array), "parameters": parameters})
        return msgspec.json.encode({"inputs": described, **self._asked})

    def _described(self, tensor: OpenTensor, array: NDArray[Any]) -> dict[str, Any]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": array.shape}


def read_index(text: bytes) -> list[str]:
    """The models that a server lists (the body of POST /v2/repository/index); none if it is
    something else."""
    try:
        return sorted({entry.name for entry in msgspec.json.decode(text, type=list[_Entry])})
    except msgspec.DecodeError:
        return []


def read_model(name: str, text: bytes) -> ModelMetadata:
    """The model that a server's metadata (the body of GET /v2/models/NAME) describes.

    Raises LoadError for what is not as the protocol says, and for tensors that are no rows of
    numbers.
    """
    try:
        metadata = msgspec.json.decode(text, type=_Metadata)
    except msgspec.DecodeError as error:
        raise LoadError(f"model {name!r} is not described as the protocol says: {error}") from error
    tensors = (*metadata.inputs, *metadata.outputs)
    for each in tensors:
        if each.datatype not in DATATYPES or not each.shape:
            raise LoadError(
                f"model {name!r} has a tensor {each.name!r}, {each.datatype} {list(each.shape)}, "
                "that is not of rows of numbers"
            )
    if not (metadata.inputs and metadata.outputs):
        raise LoadError(f"model {name!r} has no inputs, or no outputs")
    inputs, outputs = (
        tuple(OpenTensor(each.name, each.datatype, each.shape[1:]) for each in each_role)
        for each_role in (metadata.inputs, metadata.outputs)
    )
    return ModelMetadata(name, inputs, outputs)


def max_answer(model: ModelMetadata, rows: int, longest: int = 1) -> int:
    """Bytes that the answer to `rows` rows may have, whose open axes have `longest` at the most."""
    values = sum(each.values(longest) + 1 for each in model.outputs)
    return MAX_HEAD + JSON_VALUE * rows * values


def read_answers(
    model: ModelMetadata,
    rows: int,
    body: bytes,
    header_length: str | None,
    output: str | None = None,
) -> RowAnswers:
    """The answers to a request of `rows` rows, from a response's body and HEADER_LENGTH.

    They are those of `output`, by default of the model's first. Rows of a server that does not say
    their sources are the model's. Raises LoadError for an `output` that the model has not, and
    MalformedAnswerError for an answer that is not what was asked for.
    """
    judged = model.output(output)
    try:
        end = len(body) if header_length is None else int(header_length)
        head = _RESPONSE.decode(memoryview(body)[:end])
        found = None
        for tensor in head.outputs:
            size = None
            if header_length is not None and tensor.data is None:
                size = prod(tensor.shape) * DATATYPES[tensor.datatype].itemsize
            if tensor.name == judged.name or len(model.outputs) == 1:
                found = _values(tensor, rows, judged.shape, body, None if size is None else end)
            end += size or 0
        if header_length is not None and end != len(body):
            raise MalformedAnswerError(f"{len(body) - end} bytes follow the outputs")
        if found is None:
            raise MalformedAnswerError(f"there is no output {judged.name!r}")
        return RowAnswers(found, _sources(head.parameters.source, rows))
    except (
        msgspec.DecodeError, ValueError, TypeError, KeyError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise MalformedAnswerError(str(error)) from error


def _values(
    tensor: "_Tensor", rows: int, shape: tuple[int, ...], body: bytes, start: int | None
) -> NDArray[Any]:
    """An output's values, in the JSON or, from `start` on, in the body."""
    wanted = (rows, *shape)
    fits = len(tensor.shape) == len(wanted) and all(
        size == each or each < 0 for size, each in zip(tensor.shape, wanted, strict=True)
    )
    if not fits:
        raise MalformedAnswerError(f"the output has shape {list(tensor.shape)}")
    dtype = DATATYPES[tensor.datatype]
    if start is None:
        return np.array(tensor.data, dtype).reshape(tensor.shape)
    return np.frombuffer(body, dtype, prod(tensor.shape), start).reshape(tensor.shape)


def _sources(text: str | None, rows: int) -> tuple[Source, ...]:
    if text is None:
        return (Source.MODEL,) * rows
    sources = tuple(map(Source, text.split(",")))
    if len(sources) != rows:
        raise MalformedAnswerError(f"{len(sources)} sources for {rows} rows")
    return sources


class _Entry(msgspec.Struct):
    name: str


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None


class _Metadata(msgspec.Struct):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


class _Parameters(msgspec.Struct, frozen=True):
    source: str | None = None


class _Response(msgspec.Struct):
    outputs: tuple[_Tensor, ...]
    parameters: _Parameters = _Parameters()


_RESPONSE = msgspec.json.Decoder(_Response)
