"""Upstreams: the servers a remote engine runs units on, and what it takes to talk to one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import BACKUP, DEPLOYED, parity_work
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import ModelMetadata
from parity_models.serving.tensor_bytes import little_endian, rows_from_bytes, size_in_bytes

MAX_CONCURRENCY = 1000

MAX_HEAD = 64 * 2**10
"""Bytes that an answer may have besides its tensor."""

SCHEMES = ("http", "https", "grpc", "grpcs")

_QUERY = re.compile(r"concurrency=([0-9]{1,9})")


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


class UpstreamError(ServingError, UserError):
    """An upstream that cannot be used, by `fault`."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


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
    """A server at `url` (scheme://host:port), and the names its models have there, by work.

    It gets up to `concurrency` units at a time. Raises UserError if that is out of range.
    """

    url: str
    models: Mapping[str, str] = field(hash=False)
    concurrency: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise UserError(
                f"the concurrency of {self.url} must be from 1 to {MAX_CONCURRENCY}, got "
                f"{self.concurrency}"
            )

    @property
    def works(self) -> frozenset[str]:
        return frozenset(self.models)

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""


@dataclass(frozen=True)
class Fleet:
    """Upstreams, and `ca_file`: the certificates that vouch for https and grpcs.

    `ca_file` None: the system's. Raises UserError if there are no upstreams.
    """

    upstreams: tuple[Upstream, ...]
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise UserError("there is no upstream; give one or more with --deployed")

    @property
    def works(self) -> list[frozenset[str]]:
        """What each instance runs: as many instances an upstream as its concurrency, in order."""
        return [each.works for each in self.upstreams for _ in range(each.concurrency)]

    def node(self, upstream: Upstream) -> str:
        """What the upstream is slow or gone together with: its host, or itself if all share one."""
        if len({each.host for each in self.upstreams}) == 1:
            return upstream.url
        return upstream.host


@dataclass(frozen=True)
class UpstreamModel:
    """A model as an upstream has to have it."""

    name: str
    input: TensorSpec
    output: TensorSpec


class UpstreamClient(Protocol):
    """Connections to one upstream.

    Every method raises UpstreamError where it is at fault, and BusyError where it is busy.
    """

    async def check_ready(self, model: str) -> None:
        """Does the model take units now?"""

    async def metadata(self, model: str) -> ModelMetadata:
        """What the upstream says of the model."""

    async def infer(self, model: UpstreamModel, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Run the model over rows of its input: (n, *output shape). Raises UnitError too."""

    async def close(self) -> None:
        """Close all connections."""


def parse_upstreams(
    name: str,
    r: int,
    *,
    deployed: Sequence[str],
    parity: Sequence[str] = (),
    backup: Sequence[str] = (),
    concurrency: int = 1,
) -> tuple[Upstream, ...]:
    """The upstreams of URLs like http://host:8000 or grpc://host:8001/MODEL?concurrency=4.

    Where a URL has no path, the deployed model is called `name`, parity model j `name`-parity-j,
    and the backup `name`-backup, as `parm export` calls them. A server in several lists runs
    several models. `concurrency` is of those whose URLs do not say theirs. Raises UserError for
    URLs that are none, given twice, or contradict each other.
    """
    models: dict[str, dict[str, str]] = {}
    concurrencies: dict[str, int] = {}
    works = {DEPLOYED: [DEPLOYED], "parity": [parity_work(j) for j in range(r)], BACKUP: [BACKUP]}
    for url, role in (
        *((url, DEPLOYED) for url in deployed),
        *((url, "parity") for url in parity),
        *((url, BACKUP) for url in backup),
    ):
        base, path, own = _split(url)
        if path and len(works[role]) != 1:
            raise UserError(
                f"the code has {r} parity models, and {url!r} names one; leave out the path, and "
                f"call them {name}-{parity_work(0)}, ... upstream"
            )
        there = models.setdefault(base, {})
        for work in works[role]:
            if work in there:
                raise UserError(
                    f"{base} is given twice; more units at a time are {base}?concurrency=2"
                )
            there[work] = path or (name if work == DEPLOYED else f"{name}-{work}")
        if own is not None and concurrencies.setdefault(base, own) != own:
            raise UserError(f"{base} is given with concurrency {concurrencies[base]} and {own}")
    return tuple(
        Upstream(base, named, concurrencies.get(base, concurrency))
        for base, named in models.items()
    )


def check_metadata(about: ModelMetadata, model: UpstreamModel) -> None:
    """Raises UpstreamError, with the difference, unless the model is what it has to be."""
    for role, specs, wanted in (
        ("input", about.inputs, model.input),
        ("output", about.outputs, model.output),
    ):
        if len(specs) != 1:
            raise UpstreamError(
                Fault.MISMATCH, f"has model {model.name!r} with {len(specs)} {role}s, not one"
            )
        given = specs[0]
        shape = [-1, *wanted.shape]
        same_shape = len(given.shape) == len(shape) and all(
            axis in (-1, other) for axis, other in zip(given.shape, shape, strict=True)
        )
        if (given.name, given.datatype) != (wanted.name, wanted.datatype) or not same_shape:
            raise UpstreamError(
                Fault.MISMATCH,
                f"has model {model.name!r} with {role} {given.name!r} {given.datatype} "
                f"{list(given.shape)}, the bundle's has {wanted.name!r} {wanted.datatype} {shape}",
            )


def rows_like(rows: Sequence[NDArray[Any]], spec: TensorSpec) -> Sequence[NDArray[Any]]:
    """The rows; UnitError if one does not fit."""
    for each in rows:
        if each.shape != spec.shape or each.dtype != spec.dtype:
            raise UnitError(f"input {spec} got {each.dtype} {list(each.shape)}")
    return rows


def side_by_side(rows: Sequence[NDArray[Any]], spec: TensorSpec) -> list[memoryview]:
    """The bytes of the rows, as the protocol's binary data; UnitError if one does not fit."""
    return [little_endian(each).data for each in rows_like(rows, spec)]


def outputs_from(
    data: bytes | memoryview, datatype: str, shape: Sequence[int], spec: TensorSpec, rows: int
) -> NDArray[Any]:
    """The outputs in an answer: a view of `data`. Raises UpstreamError if they cannot be them."""
    check_output(datatype, shape, spec, rows)
    size = size_in_bytes(spec, rows)
    if len(data) != size:
        raise UpstreamError(
            Fault.GARBAGE, f"answered with {len(data)} bytes of data, where {size} were due"
        )
    try:
        return rows_from_bytes(spec, rows, data)
    except InvalidRequestError as error:
        raise UpstreamError(Fault.GARBAGE, f"answered what cannot be: {error}") from error


def check_output(datatype: str, shape: Sequence[int], spec: TensorSpec, rows: int) -> None:
    """Raises UpstreamError unless an answer to `rows` rows is of the output's type and shape."""
    wanted = (rows, *spec.shape)
    if datatype != spec.datatype or tuple(shape) != wanted:
        raise UpstreamError(
            Fault.GARBAGE,
            f"answered {datatype[:20]} {list(shape)[:40]}, where {spec.datatype} {list(wanted)} "
            "was due",
        )


def _split(url: str) -> tuple[str, str, int | None]:
    """scheme://host:port, and the model named after it and the concurrency, if there are any."""
    try:
        parts: SplitResult = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no URL: {error}") from error
    query = _QUERY.fullmatch(parts.query)
    further = (parts.query and not query) or parts.fragment or parts.username
    path = unquote(parts.path.strip("/"))
    if parts.scheme not in SCHEMES or not parts.hostname or further or "/" in path:
        raise UserError(
            f"{url!r} is no upstream; it is like http://host:8000, https://host, grpc://host:8001 "
            "or grpcs://host:8001, with /MODEL after it where the model has another name, and "
            "?concurrency=N for N units at a time"
        )
    if port is None and parts.scheme.startswith("grpc"):
        raise UserError(f"{url!r} has no port; gRPC has no usual one")
    return f"{parts.scheme}://{parts.netloc}", path, int(query[1]) if query else None
