"""Upstreams: the servers a remote engine runs units on, and what it takes to talk to one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError
from parity_models.models.signature import Kind, Signature, Tensor, TensorSpec
from parity_models.serving.protocol import ModelMetadata, TensorMetadata

MAX_CONCURRENCY = 1000


class PredictionProtocol(StrEnum):
    """The protocol of an upstream: the Open Inference Protocol, KServe's V2, or V1 (`:predict`)."""

    V2 = "v2"
    V1 = "v1"


class Fault(StrEnum):
    """Why an upstream gets no units for a while."""

    UNREACHABLE = "unreachable"
    NOT_READY = "not ready"
    TIMEOUT = "timeout"
    GARBAGE = "garbage"
    ERRORS = "errors"
    MISMATCH = "mismatch"
    RECYCLED = "recycled"
    """The scheduler has asked for it."""


DOUBTS = frozenset({Fault.NOT_READY, Fault.TIMEOUT, Fault.ERRORS})
"""Faults that load may look like, or many upstreams have at once for a reason that they share."""


AWAY = frozenset({Fault.UNREACHABLE, Fault.NOT_READY, Fault.TIMEOUT})
"""Faults that pass: of a server that is not there yet, not of one that is not what it must be."""


class UpstreamError(ServingError, UserError):
    """An upstream that cannot be used, by `fault`."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault

    @property
    def passes(self) -> bool:
        return self.fault in AWAY


class UnitError(Exception):
    """An upstream's answer to a unit is an error; it may be the unit's own."""


class BusyError(Exception):
    """An upstream that has enough to do; it asks to be left alone for `after` seconds.

    None: for some time. `certain` is whether it says so, rather than that it is unavailable.
    """

    def __init__(self, text: str, after: float | None = None, *, certain: bool = True) -> None:
        super().__init__(text)
        self.after = after
        self.certain = certain


@dataclass(frozen=True)
class Upstream:
    """A server at `url` (scheme://host:port), and the names its models have there, by role.

    It gets up to `concurrency` units at a time, and is asked for this `version` of its models, or
    for that which it chooses. Raises UserError if the concurrency is out of range, or the
    `protocol` is none of the URL's.
    """

    url: str
    models: Mapping[str, str] = field(hash=False)
    concurrency: int = 1
    protocol: PredictionProtocol = PredictionProtocol.V2
    version: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise UserError(
                f"the concurrency of {self.url} must be from 1 to {MAX_CONCURRENCY}, got "
                f"{self.concurrency}"
            )
        if self.protocol is PredictionProtocol.V1 and self.url.startswith("grpc"):
            raise UserError(
                f"V1 is spoken over http and https alone; leave out the protocol of {self.url}, or "
                f"write {self.url}?protocol=v2"
            )

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.models)

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""


@dataclass(frozen=True)
class UpstreamModel:
    """A model as an upstream has to have it, in this `version`, or in that which it chooses."""

    name: str
    signature: Signature
    version: str | None = None

    def __str__(self) -> str:
        return f"model {self.name!r}" + (f" version {self.version}" if self.version else "")


class Described(Protocol):
    """A tensor as an answer describes it."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


class UpstreamClient(Protocol):
    """Connections to one upstream.

    Every method raises UpstreamError where it is at fault, and BusyError where it is busy.
    """

    @property
    def abandons(self) -> bool:
        """Whether the upstream gives up a unit whose `infer` is cancelled."""

    async def check_ready(self, model: UpstreamModel) -> None:
        """Check that the model takes units now."""

    async def metadata(self, model: UpstreamModel) -> ModelMetadata | None:
        """The model as the upstream describes it; None where its protocol has no way to ask."""

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        """Run the model over queries of one kind: (n, ...) predictions. Raises UnitError too.

        `headers` go with the request; over gRPC, as metadata.
        """

    async def close(self) -> None:
        """Close all connections."""


Connect = Callable[[Upstream, int], UpstreamClient]
"""Makes the connections to an upstream, which answers with up to so many bytes."""


def check_metadata(about: ModelMetadata, model: UpstreamModel) -> None:
    """Raises UpstreamError, with the difference, unless the model is what it has to be."""
    signature = model.signature
    for role, specs, wanted in (
        ("input", about.inputs, signature.inputs),
        ("output", about.outputs, signature.outputs),
    ):
        if len(specs) != len(wanted):
            raise UpstreamError(
                Fault.MISMATCH,
                f"has {model} with {len(specs)} {role}s, not "
                f"{'one' if len(wanted) == 1 else len(wanted)}",
            )
        given = {each.name: each for each in specs}
        for tensor, other in zip(wanted, specs, strict=True):
            found = given.get(tensor.name, other)
            if not _is_same(found, tensor, signature):
                raise UpstreamError(
                    Fault.MISMATCH,
                    f"has {model} with {role} {found.name!r} {found.datatype} "
                    f"{list(found.shape)}, the bundle's has {tensor.name!r} {tensor.datatype} "
                    f"[-1{''.join(f', {each}' for each in tensor.shape)}]",
                )


def _is_same(found: TensorMetadata, tensor: Tensor, signature: Signature) -> bool:
    """Return whether the tensor that an upstream describes can be the bundle's."""

    def fits(axis: int, wanted: int | str) -> bool:
        return axis in (-1, wanted) or (
            isinstance(wanted, str) and signature.axes[wanted].buckets == (axis,)
        )

    return (
        (found.name, found.datatype) == (tensor.name, tensor.datatype)
        and len(found.shape) == len(tensor.shape) + 1
        and found.shape[0] == -1
        and all(map(fits, found.shape[1:], tensor.shape))
    )


def tensors_of(
    rows: Sequence[NDArray[Any]], signature: Signature
) -> tuple[Kind, dict[str, NDArray[Any]]]:
    """The kind of some queries, and their tensors (n, *shape), by input.

    Raises UnitError if one does not fit.
    """
    try:
        kind = signature.kind_of(rows[0])
    except ValueError as error:
        raise UnitError(f"is of a model that {error}") from error
    for each in rows:
        if not kind.input.fits(each):
            raise UnitError(f"input {kind.input} got {each.dtype} {list(each.shape)}")
    return kind, kind.input.split(np.stack(rows))


def check_outputs(
    outputs: Sequence[Described], kind: Kind, rows: int
) -> dict[str, tuple[TensorSpec, Any]]:
    """The outputs of an answer to `rows` rows, with what each has to be, by name.

    Raises UpstreamError unless they are the model's, each once, of its type and shape.
    """
    given = {output.name: output for output in outputs}
    found = {}
    for spec in kind.output.tensors:
        output = given.get(spec.name)
        if output is None:
            raise UpstreamError(Fault.GARBAGE, f"answered without output {spec.name!r}")
        wanted = (rows, *spec.shape)
        if output.datatype != spec.datatype or tuple(output.shape) != wanted:
            raise UpstreamError(
                Fault.GARBAGE,
                f"answered {output.datatype[:20]} {list(output.shape)[:40]}, where "
                f"{spec.datatype} {list(wanted)} was due",
            )
        found[spec.name] = spec, output
    if len(outputs) != len(found):
        raise UpstreamError(Fault.GARBAGE, f"answered with {len(outputs)} outputs")
    return found
