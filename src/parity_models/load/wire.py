"""The Open Inference Protocol over REST as a lean client speaks it.

Tensors are JSON, or binary data (the protocol's binary tensor data extension). Written apart
from `serving/`, so that what measures a server shares no code, and no mistake, with it.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.models.tensor import DATATYPES, TensorSpec
from parity_models.scheduling import Source

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON_VALUE = 32
"""Bytes that a number may take in JSON, with what stands around it."""
MAX_HEAD = 2**16
"""Bytes that an answer may have beside its numbers."""


class MalformedAnswerError(ValueError):
    """An answer that does not follow the protocol or does not fit the model."""


@dataclass(frozen=True)
class ModelMetadata:
    """A model as its server describes it."""

    name: str
    input: TensorSpec
    output: TensorSpec

    @property
    def path(self) -> str:
        """Where its infer requests go."""
        return f"/v2/models/{self.name}/infer"


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """The answers to a request: `outputs` (n, *output shape), and where each row came from."""

    outputs: NDArray[Any]
    sources: tuple[Source, ...]


class RequestWriter:
    """Writes infer requests of `batch` rows; all of them share their headers."""

    def __init__(self, model: ModelMetadata, batch: int = 1, binary: bool = True) -> None:
        tensor: dict[str, Any] = {
            "name": model.input.name,
            "datatype": model.input.datatype,
            "shape": [batch, *model.input.shape],
        }
        self._binary = binary
        if binary:
            tensor["parameters"] = {"binary_data_size": model.input.zeros(batch).nbytes}
            message = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
            self._head = msgspec.json.encode(message)
            self.headers = {
                "Content-Type": "application/octet-stream",
                HEADER_LENGTH: str(len(self._head)),
            }
        else:
            # The data goes between the head and its closing brackets.
            self._head = msgspec.json.encode({"inputs": [tensor]})[: -len(b"}]}")] + b',"data":'
            self.headers = {"Content-Type": "application/json"}

    def body(self, rows: NDArray[Any]) -> bytes:
        """The request's body for rows (batch, *input shape) of the model's dtype."""
        if self._binary:
            return self._head + rows.tobytes()
        return self._head + msgspec.json.encode(rows.ravel().tolist()) + b"}]}"


def read_index(text: bytes) -> list[str]:
    """The models that a server lists (the body of POST /v2/repository/index); none if it is
    something else."""
    try:
        return sorted({entry.name for entry in msgspec.json.decode(text, type=list[_Entry])})
    except msgspec.DecodeError:
        return []


def read_model(name: str, text: bytes) -> ModelMetadata:
    """The model that a server's metadata (the body of GET /v2/models/NAME) describes."""
    try:
        metadata = msgspec.json.decode(text, type=_Metadata)
        (input,), (output,) = metadata.inputs, metadata.outputs
        return ModelMetadata(name, _row_spec(input), _row_spec(output))
    except (msgspec.DecodeError, ValueError) as error:
        raise LoadError(
            f"model {name!r} is not one with one input and one output of rows: {error}"
        ) from error


def max_answer(model: ModelMetadata, rows: int) -> int:
    """Bytes that the answer to `rows` rows may have."""
    return MAX_HEAD + JSON_VALUE * rows * (prod(model.output.shape) + 1)


def read_answers(
    model: ModelMetadata, rows: int, body: bytes, header_length: str | None
) -> RowAnswers:
    """The answers to a request of `rows` rows, from a response's body and HEADER_LENGTH.

    Rows of a server that does not say their sources are the model's.
    """
    shape = (rows, *model.output.shape)
    try:
        end = len(body) if header_length is None else int(header_length)
        head = _RESPONSE.decode(memoryview(body)[:end])
        (tensor,) = head.outputs
        if tensor.shape != shape:
            raise MalformedAnswerError(f"the output has shape {list(tensor.shape)}")
        dtype = DATATYPES[tensor.datatype]
        if header_length is None:
            outputs = np.array(tensor.data, dtype).reshape(shape)
        else:
            outputs = np.frombuffer(body, dtype, offset=end).reshape(shape)
        return RowAnswers(outputs, _sources(head.parameters.source, rows))
    except (
        msgspec.DecodeError, ValueError, TypeError, KeyError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise MalformedAnswerError(str(error)) from error


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


def _row_spec(tensor: _Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, tensor.shape[1:])
