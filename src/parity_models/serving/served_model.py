"""The served model as clients see it, and the checks of what they ask of it.

Neutral to the protocol's transport: whatever carries a tensor (JSON, bytes after JSON, a
protobuf message), its name, datatype and shape are checked here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from parity_models.models.signature import Signature, Sizes, Tensor
from parity_models.scheduling import Source
from parity_models.serving.errors import InvalidRequestError, NotFoundError, TooLargeError
from parity_models.serving.protocol import (
    GateMetadata,
    ModelMetadata,
    RequestedOutput,
    TensorMessage,
    TensorMetadata,
)
from parity_models.serving.refusals import Refused

VERSION = "1"
"""What the version of a bundle is called that is served on its own."""


PLATFORM = "onnxruntime_onnx"
"""What runs the model, in the words of the protocol."""


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


_Message = TypeVar("_Message", bound="GivenTensor | TensorMessage | WantedOutput | RequestedOutput")


class Fitting(NamedTuple):
    """What is known of a request that fits the model, without its tensors' values."""

    rows: int
    sizes: Sizes
    outputs: Sequence[Tensor]


@dataclass(frozen=True)
class ServedModel:
    """Name and signature of the served model; a request holds up to `max_rows` queries.

    `tenant_header`: the header that names a request's tenant, if the operator named one. `digest`:
    the digest of the bundle's manifest, where the model is of a bundle; `sha256`: the hash of the
    model's file. `gates`: those of its stand-ins, by the source of their answers. `stood_in`: the
    names of the outputs that stand-ins give.
    """

    name: str
    signature: Signature
    max_rows: int
    tenant_header: str | None = None
    digest: str | None = None
    sha256: str | None = None
    gates: Mapping[Source, GateMetadata] = field(default_factory=dict)
    stood_in: frozenset[str] = frozenset()
    version: str = VERSION

    @property
    def max_values(self) -> int:
        """The most values that the tensors of a request have."""
        return self.max_rows * self.signature.largest.input.row_values

    @property
    def metadata(self) -> ModelMetadata:
        """What the server says of it."""
        inputs, outputs = (
            tuple(TensorMetadata(each.name, each.datatype, _open_shape(each)) for each in tensors)
            for tensors in (self.signature.inputs, self.signature.outputs)
        )
        return ModelMetadata(
            self.name,
            inputs,
            outputs,
            (self.version,),
            PLATFORM,
            self.digest,
            self.sha256,
            {str(source): gate for source, gate in self.gates.items()},
            self.exact_outputs,
        )

    @property
    def exact_outputs(self) -> tuple[str, ...]:
        """The outputs that the model alone gives: requests for one of them are served exact."""
        names = (each.name for each in self.signature.outputs)
        return tuple(name for name in names if name not in self.stood_in)

    def is_exact(self, outputs: Sequence[Tensor]) -> bool:
        """Is a request for these outputs to be served exact, as stand-ins give only others?"""
        return bool(self.stood_in) and not self.stood_in.issuperset(each.name for each in outputs)

    def parameters(self, sources: Sequence[Source]) -> dict[str, str]:
        """What a response says of its rows, which have these `sources`: those and, where a stand-in
        with a gate has answered, how often such an answer says what the model says."""
        said = {"source": ",".join(sources)}
        if self.gates and any(source in self.gates for source in sources):
            said["agreement"] = ",".join(map(self._agreement, sources))
        return said

    def _agreement(self, source: Source) -> str:
        gate = self.gates.get(source)
        return f"{gate.agreement:g}" if gate else "1" if source is Source.MODEL else ""

    def check_model(self, name: str, version: str | None) -> None:
        """Raises NotFoundError unless this model is meant (in whatever version, or its own)."""
        if name != self.name:
            raise NotFoundError(f"no model is called {name!r}; this server has {self.name!r}")
        if version not in (None, "", self.version):
            raise NotFoundError(
                f"model {name!r} has no version {version!r}; it has version {self.version!r}"
            )

    def check_request(
        self,
        inputs: Sequence[GivenTensor | TensorMessage],
        outputs: Sequence[WantedOutput | RequestedOutput],
    ) -> Fitting:
        """Rows, sizes and outputs of a request with these inputs, for these outputs: all, if none.

        Raises InvalidRequestError if they are not the model's, each once, in the messages
        themselves, and TooLargeError for too many rows.
        """
        given = self._by_name("input", self.signature.inputs, inputs)
        sizes: dict[str, int] = {}
        rows = 0
        for tensor in self.signature.inputs:
            found = given.get(tensor.name)
            if found is None:
                raise InvalidRequestError(f"input {tensor.name!r} is missing; give it once")
            count = self._check_input(tensor, found, sizes)
            if rows and count != rows:
                raise InvalidRequestError(
                    f"input {tensor.name!r} has {count} rows, input "
                    f"{self.signature.inputs[0].name!r} has {rows}; give each as many"
                )
            rows = count
        asked = self.signature.outputs
        if outputs:
            wanted = self._by_name("output", asked, outputs)
            of_name = {each.name: each for each in asked}
            asked = tuple(of_name[name] for name in wanted)
        for each in inputs:
            self._check_storage(each.name, each.shared_memory)
        for output in outputs:
            self._check_storage(output.name, output.shared_memory, output.classification)
        return Fitting(rows, tuple([sizes[axis] for axis in self.signature.axes]), asked)

    def _by_name(
        self, role: str, tensors: Sequence[Tensor], messages: Sequence[_Message]
    ) -> dict[str, _Message]:
        """The messages by the names of their tensors. Raises InvalidRequestError unless these are
        the model's, each at most once."""
        given = {each.name: each for each in messages}
        known = [tensor.name for tensor in tensors]
        for name in given:
            if name not in known:
                its = f"its {role} is" if len(known) == 1 else f"its {role}s are"
                said = ", ".join(map(_said, tensors)) if role == "input" else _names(tensors)
                raise InvalidRequestError(
                    f"model {self.name!r} has no {role} {name!r}; {its} {said}"
                )
        if len(given) != len(messages):
            # In one pass: a request may name a great many.
            ((name, times),) = Counter(each.name for each in messages).most_common(1)
            again = f"given {times} times; give it once" if role == "input" else "requested twice"
            raise InvalidRequestError(f"{role} {name!r} is {again}")
        return given

    def _check_input(
        self, tensor: Tensor, given: GivenTensor | TensorMessage, sizes: dict[str, int]
    ) -> int:
        """The number of rows of a tensor; takes down, or compares, the `sizes` of dynamic axes.

        Raises InvalidRequestError if it is not the model's, TooLargeError for too many rows.
        """
        if given.datatype != tensor.datatype:
            raise InvalidRequestError(
                f"input {tensor.name!r} has datatype {tensor.datatype}, got {given.datatype!r}"
            )
        rows, *shape = given.shape or (0,)
        fits = len(shape) == len(tensor.shape)
        for each, size in zip(tensor.shape, shape, strict=False):
            fits = fits and (each == size or isinstance(each, str))
        if not fits or rows < 1:
            raise InvalidRequestError(
                f"input {tensor.name!r} has shape {list(_open_shape(tensor))} with one row or "
                f"more, got {list(given.shape)}"
            )
        for axis, at in tensor.axes.items() if self.signature.axes else ():
            self._check_size(tensor.name, axis, shape[at], sizes)
        if rows > self.max_rows:
            raise TooLargeError(
                f"the request has {rows} rows, this server takes up to {self.max_rows} at once "
                "(max_queue); send several requests",
                why=Refused.MAX_QUEUE,
            )
        return rows

    def _check_size(self, tensor: str, axis: str, size: int, sizes: dict[str, int]) -> None:
        bound = self.signature.axes[axis].bound
        if not 1 <= size <= bound:
            raise InvalidRequestError(
                f"input {tensor!r} has {size} along {axis!r}; this server takes 1 to {bound}"
            )
        if sizes.setdefault(axis, size) != size:
            raise InvalidRequestError(
                f"input {tensor!r} has {size} along {axis!r}, another input has {sizes[axis]}; "
                "pad them to one size"
            )

    def _check_storage(
        self, tensor: str, shared_memory: bool, classification: bool = False
    ) -> None:
        """Raises InvalidRequestError for tensors that are not in the messages themselves."""
        if shared_memory:
            raise InvalidRequestError(
                f"a tensor of model {self.name!r} is in shared memory, which this server neither "
                "reads nor writes; leave it in the messages"
            )
        if classification:
            raise InvalidRequestError(
                f"output {tensor!r} is requested as classifications; this server "
                "returns the tensor itself"
            )


def _open_shape(tensor: Tensor) -> tuple[int, ...]:
    """Its shape with the batch axis, where -1 is any size."""
    return (-1, *(-1 if isinstance(each, str) else each for each in tensor.shape))


def _said(tensor: Tensor) -> str:
    return f"{tensor.name!r}, {tensor.datatype} {list(_open_shape(tensor))}"


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(repr(each.name) for each in tensors)
