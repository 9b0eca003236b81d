"""The served model as clients see it, and the checks of what they ask of it.

Neutral to the protocol's transport: whatever carries a tensor (JSON, bytes after JSON, a
protobuf message), its name, datatype and shape are checked here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.serving.errors import InvalidRequestError, NotFoundError, TooLargeError
from parity_models.serving.protocol import ModelMetadata, TensorMetadata

VERSION = "1"
"""A bundle holds one version of its model, and every one is called this."""


PLATFORM = "onnxruntime_onnx"
"""What runs the model, in the words of the protocol."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that fits the model: `rows` (n, *input shape), read-only, one query each.

    `id` is the client's, if it gave one. `timeout` in seconds; `binary` says how the output is to
    be written. `exact`: stand-ins are not to answer; `tenant`: whom it may share codes with.
    """

    id: str | None
    rows: NDArray[Any]
    timeout: float | None
    binary: bool
    exact: bool = False
    tenant: str | None = None


class GivenTensor(NamedTuple):
    """What a request says of an input."""

    name: str
    datatype: str
    shape: Sequence[int]
    shared_memory: bool


class WantedOutput(NamedTuple):
    """What a request says of an output that it asks for."""

    name: str
    shared_memory: bool
    classification: bool


@dataclass(frozen=True)
class ServedModel:
    """Name, input and output of the served model; a request holds up to `max_rows` queries.

    `tenant_header`: the header that names a request's tenant, if the operator named one. `digest`:
    the digest of the bundle's manifest, where the model is of a bundle; `sha256`: the hash of the
    model's file.
    """

    name: str
    input: TensorSpec
    output: TensorSpec
    max_rows: int
    tenant_header: str | None = None
    digest: str | None = None
    sha256: str | None = None

    @property
    def metadata(self) -> ModelMetadata:
        """What the server says of it."""
        inputs, outputs = (
            (TensorMetadata(spec.name, spec.datatype, (-1, *spec.shape)),)
            for spec in (self.input, self.output)
        )
        return ModelMetadata(
            self.name, inputs, outputs, (VERSION,), PLATFORM, self.digest, self.sha256
        )

    def check_model(self, name: str, version: str | None) -> None:
        """Raises NotFoundError unless this model is meant (in whatever version, or its own)."""
        if name != self.name:
            raise NotFoundError(f"no model is called {name!r}; this server has {self.name!r}")
        if version not in (None, "", VERSION):
            raise NotFoundError(
                f"model {name!r} has no version {version!r}; it has version {VERSION!r}"
            )

    def check_request(self, inputs: Iterable[GivenTensor], outputs: Iterable[WantedOutput]) -> int:
        """The number of rows of a request with these inputs, for these outputs.

        Raises InvalidRequestError if they are not the model's, each once, in the messages
        themselves, and TooLargeError for too many rows.
        """
        inputs, outputs = list(inputs), list(outputs)
        self._check_inputs([tensor.name for tensor in inputs])
        rows = self._check_input(inputs[0].datatype, inputs[0].shape)
        self._check_outputs([output.name for output in outputs])
        for tensor in inputs:
            self._check_storage(tensor.shared_memory)
        for output in outputs:
            self._check_storage(output.shared_memory, output.classification)
        return rows

    def _check_inputs(self, names: Sequence[str]) -> None:
        """Raises InvalidRequestError unless the model's one input is given, once."""
        for name in names:
            if name != self.input.name:
                raise InvalidRequestError(
                    f"model {self.name!r} has no input {name!r}; its input is {self._input}"
                )
        if len(names) != 1:
            given = f"given {len(names)} times" if names else "missing"
            raise InvalidRequestError(f"input {self.input.name!r} is {given}; give it once")

    def _check_outputs(self, names: Iterable[str]) -> None:
        """Raises InvalidRequestError unless the model's one output is asked for at most once."""
        names = list(names)
        for name in names:
            if name != self.output.name:
                raise InvalidRequestError(
                    f"model {self.name!r} has no output {name!r}; its output is "
                    f"{self.output.name!r}"
                )
        if len(names) > 1:
            raise InvalidRequestError(f"output {self.output.name!r} is requested twice")

    def _check_input(self, datatype: str, shape: Sequence[int]) -> int:
        """The number of rows of an input tensor of this datatype and shape.

        Raises InvalidRequestError if it is not the model's, TooLargeError for too many rows.
        """
        if datatype != self.input.datatype:
            raise InvalidRequestError(
                f"input {self.input.name!r} has datatype {self.input.datatype}, got {datatype!r}"
            )
        rows, *row_shape = shape or (0,)
        if tuple(row_shape) != self.input.shape or rows < 1:
            raise InvalidRequestError(
                f"input {self.input.name!r} has shape {self._shape} with one row or more, got "
                f"{list(shape)}"
            )
        if rows > self.max_rows:
            raise TooLargeError(
                f"the request has {rows} rows, this server takes up to {self.max_rows} at once; "
                "send several requests"
            )
        return rows

    def _check_storage(self, shared_memory: bool, classification: bool = False) -> None:
        """Raises InvalidRequestError for tensors that are not in the messages themselves."""
        if shared_memory:
            raise InvalidRequestError(
                f"a tensor of model {self.name!r} is in shared memory, which this server neither "
                "reads nor writes; leave it in the messages"
            )
        if classification:
            raise InvalidRequestError(
                f"output {self.output.name!r} is requested as classifications; this server "
                "returns the tensor itself"
            )

    @property
    def _shape(self) -> list[int]:
        return [-1, *self.input.shape]

    @property
    def _input(self) -> str:
        return f"{self.input.name!r}, {self.input.datatype} {self._shape}"
