"""The models of a server, as clients see them, and the checks of their requests.

A server has one model, or a repository. A name may have several versions. One of them answers all
of a request: it is chosen when the request is read, and asked before anything is awaited. Names,
datatypes and shapes of tensors are checked here, however they arrive (JSON, bytes after JSON,
protobuf, arrays).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, Self

from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from prometheus_client.registry import Collector

from parity_models.bundle.bundle import Bundle
from parity_models.errors import spell
from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, NotFoundError, Refused, TooLargeError
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import (
    GateMetadata,
    ModelMetadata,
    RequestedOutput,
    TensorMetadata,
    TensorParameters,
)
from parity_models.tensors.pairs import Labels
from parity_models.tensors.signature import Signature, Sizes, Tensor
from parity_models.tensors.texts import BYTES
from parity_models.trust.gate import Gate

VERSION = "1"
"""The version of a bundle that is served on its own."""

PLATFORM = "onnxruntime_onnx"
"""The protocol's name for the model's runtime."""

_NAME = attrgetter("name")


TensorHead = tuple[str, str, Sequence[int]]
"""Name, datatype and shape of a tensor of a request."""


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
    model's file. `labels`: clients get labels, and the predictor gives classes. `gates`: the gates
    of stand-ins, by the source of their answers. `stood_in`: the names of the outputs that
    stand-ins give.
    """

    name: str
    signature: Signature
    max_rows: int
    tenant_header: str | None = None
    digest: str | None = None
    sha256: str | None = None
    labels: Labels | None = None
    gates: Mapping[Source, GateMetadata] = field(default_factory=dict)
    stood_in: frozenset[str] = frozenset()
    version: str = VERSION

    @classmethod
    def of(
        cls, bundle: Bundle, name: str | None, gates: Mapping[Source, Gate], **more: Any
    ) -> Self:
        """Return the model of a bundle under this name, by default its own, with these gates."""
        manifest = bundle.manifest
        signature, labels = manifest.deployed.signature, None
        if manifest.labels:
            labels, (output,) = Labels.of(manifest.labels), signature.outputs
            text = Tensor(output.name, BYTES, (1,))
            signature = replace(signature, outputs=(text,))
        return cls(
            name or manifest.name,
            signature,
            digest=bundle.digest,
            sha256=manifest.deployed.sha256,
            labels=labels,
            gates={
                source: GateMetadata(gate.level, gate.coverage, gate.classes)
                for source, gate in gates.items()
                if gate.level is not None
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
    def known(self) -> dict[tuple[bytes, int], Any]:
        """Earlier requests that the REST codec keeps, by their JSON and the length of the body."""
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

    def check_request(self, inputs: Sequence[TensorHead], outputs: Sequence[str] = ()) -> Fitting:
        """Return rows, sizes and outputs of a request; without `outputs`, it asks for all.

        Raises:
            InvalidRequestError: Tensors are unknown, repeated, missing or unfit.
            TooLargeError: There are too many rows.

        """
        given: dict[str, TensorHead] = {}
        for each in inputs:
            given[each[0]] = each
        if len(given) != len(inputs) or given.keys() != self._inputs.keys():
            self._refuse_names("input", self._inputs, [each[0] for each in inputs])
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
            if len(set(outputs)) != len(outputs) or not self._outputs.keys() >= set(outputs):
                self._refuse_names("output", self._outputs, outputs)
            asked = tuple([self._outputs[name] for name in outputs])
        return Fitting(rows, tuple(map(sizes.__getitem__, self.signature.axes)), asked)

    def check_parameters(
        self, inputs: Iterable[TensorParameters | None], outputs: Sequence[RequestedOutput]
    ) -> None:
        """Raise InvalidRequestError for tensors in shared memory, and for classifications."""
        for each in (*inputs, *(output.parameters for output in outputs)):
            if each is not None and each.shared_memory_region is not None:
                raise InvalidRequestError(
                    f"a tensor of model {self.name!r} is in shared memory, which this server "
                    "neither reads nor writes; leave it in the messages"
                )
        for output in outputs:
            if output.parameters is not None and output.parameters.classification:
                raise InvalidRequestError(
                    f"output {output.name!r} is requested as classifications; this server "
                    "returns the tensor itself"
                )

    def _refuse_names(self, role: str, tensors: Mapping[str, Tensor], given: Sequence[str]) -> None:
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

    def _check_input(self, tensor: Tensor, given: TensorHead, sizes: dict[str, int]) -> int:
        """Return the number of rows of a tensor; note, or compare, the `sizes` of dynamic axes.

        Raises InvalidRequestError if it does not fit the model, TooLargeError for too many rows.
        """
        name, datatype, whole = given
        if datatype != tensor.datatype:
            raise InvalidRequestError(
                f"input {name!r} has datatype {tensor.datatype}, got {datatype!r}"
            )
        rows, *shape = whole or (0,)
        fits = len(shape) == len(tensor.shape)
        for each, size in zip(tensor.shape, shape, strict=False):
            fits = fits and (each == size or isinstance(each, str))
        if not fits or rows < 1:
            raise InvalidRequestError(
                f"input {name!r} has shape {list(_open_shape(tensor))} with one row or "
                f"more, got {list(whole)}"
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


class Result(Struct, frozen=True, eq=False):
    """The answers to a request: `outputs` (n, *output shape), and the source of each row.

    `doubts` (n,) are the probabilities that rows differ from the model's predictions; empty if all
    are the model's own. `degraded`: no instance of the model was up.
    """

    outputs: NDArray[Any]
    sources: Sequence[Source]
    doubts: Sequence[float] = ()
    degraded: bool = False

    @property
    def parameters(self) -> dict[str, str]:
        """The response's parameters on its rows: their sources and, if any are stand-ins, the
        probability that each row agrees with the model's prediction."""
        parameters = {"source": ",".join(self.sources)}
        if any(each.stands_in for each in self.sources):
            doubts = self.doubts or [0.0] * len(self.sources)
            parameters["agreement"] = ",".join(map(_agreement, doubts))
        return parameters

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Headers, or gRPC's trailing metadata, for gateways and logs: the sources, each once, and
        the lowest agreement of a row."""
        if self.sources.count(Source.MODEL) == len(self.sources):
            return OF_MODEL
        kinds = ",".join(dict.fromkeys(self.sources))
        known = (SOURCE, kinds), (AGREEMENT, _agreement(max(self.doubts, default=0.0)))
        return (*known, DEGRADED) if self.degraded else known


SOURCE, AGREEMENT = "x-parm-source", "x-parm-agreement"
DEGRADED = ("x-parm-degraded", "1")
OF_MODEL = ((SOURCE, str(Source.MODEL)), (AGREEMENT, "1"))
"""The headers of an answer from the model alone."""


def _agreement(doubt: float) -> str:
    return f"{1 - doubt:.6g}"


class Predictor(Protocol):
    """Answers queries: a frontend with its instances, or a stand-in alone."""

    @property
    def ready(self) -> bool:
        """True if a query would be answered."""

    @property
    def differ(self) -> float | None:
        """The share of all answers that may differ from the model's; None without a budget."""

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered wrongly, the latest last."""

    def check_admission(self, rows: int, timeout: float | None = None) -> None:
        """Raise the error of a request of this many rows, still unread, if it would be refused."""

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Result:
        """Answer a query per row of `rows`. Raises a RequestError if one gets no answer."""

    def retire(self) -> None:
        """Stop being ready, so that clients go elsewhere, but still take queries."""

    async def drain(self) -> None:
        """Take no more queries; return when all earlier ones have ended."""

    async def stop(self) -> None:
        """Stop all that runs. Queries in flight get an error."""


class Models(Protocol):
    """The models of a server, by name, while it runs."""

    metrics: Metrics
    """The metrics of the server."""
    registry: Collector
    """The metrics of the server and its models."""
    title: str
    """A name for all of it, for people."""
    extensions: Sequence[str] = ()
    """The protocol extensions that its models add."""
    instances: int = 0
    """The number of worker processes to expect."""

    @property
    def only(self) -> "ServedVersion | None":
        """The version of a server of a single bundle; None for a repository."""
        return None

    @property
    def largest(self) -> ServedModel | None:
        """The model whose requests may be the largest, if there is one."""

    @property
    def why_unready(self) -> str:
        """The reason why the server is not ready; empty if it is."""

    def find(self, name: str, version: str | None) -> "ServedVersion":
        """Return the version that is meant; for None or "", the server's choice.

        Raises:
            NotFoundError: There is no such version.
            UnavailableError: It takes no requests.

        """

    def index(self) -> Sequence[IndexEntry]:
        """Return all versions that are known."""

    def switch_redundancy(self, on: bool) -> None:
        """Switch redundant work, where there is any, on or off for the versions that run now."""

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model from its folder; return when it takes requests.

        Raises a RequestError, and changes nothing, if that is not possible.
        """
        raise InvalidRequestError(
            "this server serves one bundle; parm serve --repository loads and unloads models"
        )

    async def unload(self, name: str) -> None:
        """Stop serving a model; return when its requests have been answered."""
        await self.load(name, {})

    async def start(self) -> None:
        """Start all models; return when they take requests, or cannot.

        Raises:
            ServingError: An instance of the only model does not start; nothing is left running.

        """

    def retire(self) -> None:
        """Report not ready from now on, but still take requests."""

    async def drain(self) -> None:
        """Take no more requests; return when those in flight have ended."""

    async def stop(self) -> None:
        """Stop all models at once."""


class ServedVersion(Models):
    """A version of a model that takes requests; also the Models of a server of one bundle.

    Args:
        predictor: Answers its queries.
        model: The model as clients see it.
        metrics: Count its requests; all requests, if the server has one bundle.

    """

    notes: Sequence[str] = ()
    """Surprises for a user."""
    description = ""
    """How it is served, for people."""

    def __init__(self, predictor: Predictor, model: ServedModel, metrics: Metrics) -> None:
        self.predictor = predictor
        self.model = model
        self.metrics = metrics
        self.registry: Collector = metrics.registry
        self.title = model.name

    def metadata(self) -> ModelMetadata:
        """Return the metadata of its model."""
        return replace(
            self.model.metadata,
            differ=self.predictor.differ,
            quarantined_instances=tuple(self.predictor.quarantined),
        )

    def change_budget(self, differ: float) -> None:
        """Change the share of all answers that may differ from the model's.

        Raises InvalidRequestError if its policy has no such budget.
        """
        raise InvalidRequestError(
            f"the policy of model {self.model.name!r} has no budget of answers that may "
            f"differ; serve it with {spell('policy', 'adaptive')}"
        )

    def begin_faults(self) -> None:
        """Start the clock of its fault plan, if it has one."""

    def frame(self) -> bytes:
        """Return its state for the live page, as JSON; empty if it is not watched."""
        return b""

    # Models of one bundle

    @property
    def only(self) -> "ServedVersion":
        return self

    @property
    def largest(self) -> ServedModel:
        return self.model

    @property
    def why_unready(self) -> str:
        return "" if self.predictor.ready else "no instance of the deployed model takes queries now"

    def find(self, name: str, version: str | None) -> "ServedVersion":
        model = self.model
        if name != model.name:
            raise NotFoundError(f"no model is called {name!r}; this server has {model.name!r}")
        if version not in (None, "", model.version):
            raise NotFoundError(
                f"model {name!r} has no version {version!r}; it has version {model.version!r}"
            )
        return self

    def index(self) -> Sequence[IndexEntry]:
        state = "UNAVAILABLE" if self.why_unready else "READY"
        return (IndexEntry(self.model.name, self.model.version, state),)

    def switch_redundancy(self, on: bool) -> None:
        """Do nothing, by default."""

    async def start(self) -> None:
        """Do nothing: what needs a start has its own."""

    def retire(self) -> None:
        self.predictor.retire()

    async def drain(self) -> None:
        await self.predictor.drain()

    async def stop(self) -> None:
        await self.predictor.stop()
