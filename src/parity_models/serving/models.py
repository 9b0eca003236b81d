"""The models of a server, as clients see them, and the checks of their requests.

A server has one model, or a repository. A name may have several versions. One of them answers all
of a request: it is chosen when the request is read, and asked before anything is awaited. Names,
datatypes and shapes of tensors are checked here, however they arrive (JSON, bytes after JSON,
protobuf).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from msgspec import Struct
from msgspec.structs import replace
from prometheus_client.registry import Collector

from parity_models.bundle.bundle import Bundle
from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, NotFoundError, Refused, TooLargeError
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import (
    GateMetadata,
    Known,
    ModelMetadata,
    RequestedOutput,
    TensorMessage,
    TensorMetadata,
)
from parity_models.tensors.signature import Signature, Sizes, Tensor
from parity_models.trust.gates import ChosenGate

if TYPE_CHECKING:
    from parity_models.serving.frontend import Frontend
    from parity_models.serving.repository import Repository
    from parity_models.serving.stand_in_only import StandInOnly

VERSION = "1"
"""The version of a bundle that is served on its own."""

PLATFORM = "onnxruntime_onnx"
"""The protocol's name for the model's runtime."""

_NAME = attrgetter("name")


class Fitting(NamedTuple):
    """A request that fits the model, without its tensors' values."""

    rows: int
    sizes: Sizes
    outputs: Sequence[Tensor]


@dataclass(frozen=True)
class ServedModel:
    """Name and signature of the served model; a request holds up to `max_rows` queries.

    `tenant_header`: the header that names a request's tenant, if the operator named one. `digest`:
    the digest of the bundle's manifest, if the model is a bundle's; `sha256`: the hash of the
    model's file. `gates`: the gates of stand-ins, by the source of their answers. `stood_in`: the
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

    @classmethod
    def of(
        cls, bundle: Bundle, name: str | None, gates: Mapping[Source, ChosenGate], **more: Any
    ) -> Self:
        """Return the model of a bundle under this name, by default its own, with these gates."""
        manifest = bundle.manifest
        return cls(
            name or manifest.name,
            manifest.deployed.signature,
            digest=bundle.digest,
            sha256=manifest.deployed.sha256,
            gates={
                source: GateMetadata(gate.level.level, gate.level.coverage, gate.classes)
                for source, gate in gates.items()
            },
            **more,
        )

    @property
    def max_values(self) -> int:
        """The most values that the tensors of a request can have."""
        return self.max_rows * self.signature.largest.input.row_values

    @property
    def metadata(self) -> ModelMetadata:
        """The metadata by which the server describes it."""
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
            exact_outputs=self.exact_outputs,
        )

    @property
    def exact_outputs(self) -> tuple[str, ...]:
        """The outputs that only the model gives: requests for any of them are served exact."""
        return tuple(name for name in self._outputs if name not in self.stood_in)

    @cached_property
    def known(self) -> dict[tuple[bytes, int], Known]:
        """JSON objects of earlier requests, by their bytes and the length of the body."""
        return {}

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        return {each.name: each for each in self.signature.inputs}

    @cached_property
    def _outputs(self) -> dict[str, Tensor]:
        return {each.name: each for each in self.signature.outputs}

    def is_exact(self, outputs: Sequence[Tensor]) -> bool:
        """Return whether a request for these outputs is served exact: stand-ins lack some."""
        return bool(self.stood_in) and not self.stood_in.issuperset(map(_NAME, outputs))

    def check_request(
        self,
        inputs: Sequence[TensorMessage],
        outputs: Sequence[RequestedOutput],
    ) -> Fitting:
        """Return rows, sizes and outputs of a request; without `outputs`, it asks for all.

        Raises:
            InvalidRequestError: Tensors are unknown, repeated, missing, unfit or in shared memory.
            TooLargeError: There are too many rows.

        """
        given: dict[str, TensorMessage] = {}
        for each in inputs:
            given[each.name] = each
        if len(given) != len(inputs) or given.keys() != self._inputs.keys():
            self._refuse_names("input", self._inputs, [each.name for each in inputs])
        sizes: dict[str, int] = {}
        rows = 0
        for name, tensor in self._inputs.items():
            count = self._check_input(tensor, given[name], sizes)
            if rows and count != rows:
                raise InvalidRequestError(
                    f"input {name!r} has {count} rows, input "
                    f"{self.signature.inputs[0].name!r} has {rows}; give all the same number"
                )
            rows = count
        asked = self.signature.outputs
        if outputs:
            names = [each.name for each in outputs]
            if len(set(names)) != len(names) or not self._outputs.keys() >= set(names):
                self._refuse_names("output", self._outputs, names)
            asked = tuple([self._outputs[name] for name in names])
        parts: list[TensorMessage | RequestedOutput] = [*inputs, *outputs]
        for part in parts:
            if part.parameters is None:
                continue
            if part.parameters.shared_memory_region is not None:
                raise InvalidRequestError(
                    f"a tensor of model {self.name!r} is in shared memory, which this server "
                    "neither reads nor writes; leave it in the messages"
                )
            if part.parameters.classification and isinstance(part, RequestedOutput):
                raise InvalidRequestError(
                    f"output {part.name!r} is requested as classifications; this server "
                    "returns the tensor itself"
                )
        return Fitting(rows, tuple(map(sizes.__getitem__, self.signature.axes)), asked)

    def _refuse_names(self, role: str, tensors: Mapping[str, Tensor], given: list[str]) -> None:
        """Raise InvalidRequestError for unknown, repeated or missing names."""
        for name in given:
            if name not in tensors:
                its = f"its {role} is" if len(tensors) == 1 else f"its {role}s are"
                said = ", ".join(
                    f"{each.name!r}, {each.datatype} {list(_open_shape(each))}"
                    for each in tensors.values()
                )
                raise InvalidRequestError(
                    f"model {self.name!r} has no {role} {name!r}; {its} {said}"
                )
        # In one pass: a request may name a great many.
        for name, times in Counter(given).most_common(1):
            if times > 1:
                raise InvalidRequestError(f"{role} {name!r} is given {times} times; give it once")
        for name in tensors:
            if name not in given:
                raise InvalidRequestError(f"input {name!r} is missing; give it once")

    def _check_input(self, tensor: Tensor, given: TensorMessage, sizes: dict[str, int]) -> int:
        """Return the number of rows of a tensor; note, or compare, the `sizes` of dynamic axes.

        Raises InvalidRequestError if it does not fit the model, TooLargeError for too many rows.
        """
        name = tensor.name
        if given.datatype != tensor.datatype:
            raise InvalidRequestError(
                f"input {name!r} has datatype {tensor.datatype}, got {given.datatype!r}"
            )
        rows, *shape = given.shape or (0,)
        fits = len(shape) == len(tensor.shape)
        for each, size in zip(tensor.shape, shape, strict=False):
            fits = fits and (each == size or isinstance(each, str))
        if not fits or rows < 1:
            raise InvalidRequestError(
                f"input {name!r} has shape {list(_open_shape(tensor))} with one row or "
                f"more, got {list(given.shape)}"
            )
        for axis, at in tensor.axes.items() if self.signature.axes else ():
            size, bound = shape[at], self.signature.axes[axis].bound
            if not 1 <= size <= bound:
                raise InvalidRequestError(
                    f"input {name!r} has {size} along {axis!r}; this server takes 1 to {bound}"
                )
            if sizes.setdefault(axis, size) != size:
                raise InvalidRequestError(
                    f"input {name!r} has {size} along {axis!r}, another input has {sizes[axis]}; "
                    "pad them to one size"
                )
        if rows > self.max_rows:
            raise self.too_many(rows)
        return rows

    def too_many(self, rows: int) -> TooLargeError:
        """Return the error of a request of more rows than `max_rows`."""
        return TooLargeError(
            f"the request has {rows} rows, this server takes up to {self.max_rows} at once; send "
            "several requests",
            why=Refused.MAX_QUEUE,
        )


def _open_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape with the batch axis; -1 is any size."""
    return (-1, *(-1 if isinstance(each, str) else each for each in tensor.shape))


REPOSITORY = "model_repository"
"""The protocol extension by which models are listed, loaded and unloaded."""


class IndexEntry(Struct, frozen=True, omit_defaults=True):
    """A version in the index of a repository; `state` is one of Triton's, `reason` for people."""

    name: str
    version: str
    state: str
    reason: str = ""


class ServedVersion:
    """A version of a model that takes requests; also the Models of a server of one bundle.

    Args:
        frontend: Answers its queries.
        model: The model as clients see it.
        metrics: Count its requests; all requests, if the server has one bundle.

    """

    extensions: Sequence[str] = ()
    """The protocol extensions that its models add."""

    def __init__(
        self, frontend: "Frontend | StandInOnly", model: ServedModel, metrics: Metrics
    ) -> None:
        self.frontend = frontend
        self.model = model
        self.metrics = metrics
        self.registry: Collector = metrics.registry
        """The metrics of the server and its models."""

    def change_budget(self, differ: float) -> None:
        """Change the share of all answers that may differ from the model's.

        Raises InvalidRequestError if its policy has no such budget.
        """
        if self.frontend.differ is None:
            raise InvalidRequestError(
                f"the policy of model {self.model.name!r} has no budget of answers that may "
                "differ; serve it with --policy adaptive"
            )
        self.frontend.change_budget(differ)

    def metadata(self) -> ModelMetadata:
        """Return the metadata of its model."""
        return replace(
            self.model.metadata,
            differ=self.frontend.differ,
            quarantined_instances=tuple(self.frontend.quarantined),
        )

    @property
    def why_unready(self) -> str:
        """The reason why the server is not ready; empty if it is."""
        return "" if self.frontend.ready else "no instance of the deployed model takes queries now"

    @property
    def only(self) -> "ServedVersion | None":
        """The version of a server of a single bundle; None for a repository."""
        return self

    @property
    def largest(self) -> ServedModel | None:
        """The model whose requests may be the largest, if there is one."""
        return self.model

    def find(self, name: str, version: str | None) -> "ServedVersion":
        """Return the version that is meant; for None or "", the server's choice.

        Raises:
            NotFoundError: There is no such version.
            UnavailableError: It takes no requests.

        """
        model = self.model
        if name != model.name:
            raise NotFoundError(f"no model is called {name!r}; this server has {model.name!r}")
        if version not in (None, "", model.version):
            raise NotFoundError(
                f"model {name!r} has no version {version!r}; it has version {model.version!r}"
            )
        return self

    def index(self) -> Sequence[IndexEntry]:
        """Return all versions that are known."""
        state = "UNAVAILABLE" if self.why_unready else "READY"
        return (IndexEntry(self.model.name, self.model.version, state),)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model from its folder; return when it takes requests.

        Raises a RequestError, and changes nothing, if that is not possible.
        """
        raise InvalidRequestError(
            "this server serves one bundle; start it with --repository to load and unload models"
        )

    async def unload(self, name: str) -> None:
        """Stop serving a model; return when its requests have been answered."""
        await self.load(name, {})


Models: TypeAlias = "ServedVersion | Repository"
"""The models of a server, by name."""
