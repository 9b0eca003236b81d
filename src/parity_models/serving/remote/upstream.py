"""Upstreams of the remote engine, the faults that they may have, and the base of their clients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError, spell
from parity_models.serving.access import Reread, read_text
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import BINARY, SOFTWARE, OutputTensor, ServerMetadata
from parity_models.tensors.pairs import Labels
from parity_models.tensors.signature import Kind, Signature, batches, tensors_in
from parity_models.tensors.texts import BYTES
from parity_models.trust.golden import is_near

TOLERANCE = 0.05
"""The largest difference between an upstream's prediction and the bundle's, as a share of the
largest value: it allows for other precisions, not for other weights."""

MAX_TEXT = 300
"""Characters that are kept of what an upstream says."""

_MAX_VERSIONS = 100
"""Versions of a model that are told apart."""


def give_token() -> str:
    """Return the advice for a refusal without a token."""
    return f"; give a token that it knows: {spell('engine', 'remote@upstream-token=FILE')}"


Tensors = Mapping[str, NDArray[Any]]
"""Rows (n, *shape) of a model's inputs, by name."""


class Fault(StrEnum):
    """The reason why an upstream gets no units for a while."""

    UNREACHABLE = "unreachable"
    NOT_READY = "not ready"
    TIMEOUT = "timeout"
    GARBAGE = "garbage"
    ERRORS = "errors"
    MISMATCH = "mismatch"
    RECYCLED = "recycled"
    """The scheduler has recycled an instance."""


DOUBTS = frozenset({Fault.NOT_READY, Fault.TIMEOUT, Fault.ERRORS})
"""Faults that overload can cause, too, or that many upstreams have at once for a shared reason."""


class UpstreamError(ServingError, UserError):
    """An upstream that cannot be used, because of `fault`."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class UnitError(Exception):
    """An upstream's error for a unit, which may be the unit's own fault."""


class BusyError(Exception):
    """A busy upstream; it wants the next unit in `after` seconds, if it says so."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


@dataclass(frozen=True)
class Upstream:
    """A server at `url` (scheme://host:port), and the names its models have there, by role.

    It gets up to `concurrency` units at a time, over the Open Inference Protocol ("v2") or its
    predecessor ("v1", `:predict`), for this `version` of its models; None: the server's choice.
    """

    url: str
    models: Mapping[str, str] = field(hash=False)
    concurrency: int = 1
    protocol: str = "v2"
    version: str | None = None


@dataclass(frozen=True)
class UpstreamModel:
    """A model that an upstream must have, in this `version`; None: the upstream's choice.

    It is known by the `sha256` of its file, and by the `prediction` for a `query`, both without a
    batch axis. If its bundle is made from a log, neither is known, its output may have any name,
    and it may answer with `labels`.
    """

    name: str
    version: str | None
    signature: Signature
    query: NDArray[Any]
    prediction: NDArray[Any] | None
    sha256: str
    labels: Labels | None = None

    def __str__(self) -> str:
        return f"model {self.name!r}" + (f" version {self.version}" if self.version else "")


class Token(Reread):
    """The bearer token in a file. Raises UserError for a file without one."""

    def read(self) -> None:
        (path,) = self._paths
        token = read_text(path, "the file of upstream_token").strip()
        if not token or not (token.isascii() and token.isprintable()):
            raise UserError(f"{path} holds no token; write one line of printable characters")
        self.value = token


class UpstreamClient(ABC):
    """Connections to one upstream, by one transport and protocol.

    Every method raises UpstreamError if the upstream is at fault, and BusyError if it is busy.
    `abandons`: the upstream gives up a unit whose `infer` is cancelled; others work on, or crash
    now and then (Triton 2.51). `binary`: it reads binary data over REST. `on_new_version` is called
    with the model, its version so far, and a new one from which an answer has come.
    """

    abandons = False
    binary = False

    def __init__(self, token: Token | None) -> None:
        self._token = token
        self._versions: dict[str, list[str]] = {}
        self.on_new_version: Callable[[UpstreamModel, str, str], None] = lambda *_: None

    def _answered(self, model: UpstreamModel, version: str | None) -> None:
        """Note the version of the model that gave an answer, if the answer names one."""
        known = self._versions.setdefault(model.name, [])
        version = version and version[:MAX_TEXT]
        if not version or version in known or len(known) == _MAX_VERSIONS:
            return
        known.append(version)
        if len(known) > 1:
            self.on_new_version(model, known[-2], version)

    async def check_ready(self, model: UpstreamModel) -> None:
        """Check that the model takes units now."""
        if self._token is not None:
            self._token.refresh()
            self._authorize(self._token.value)
        await self._check_ready(model)

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    @abstractmethod
    def _authorize(self, token: str) -> None:
        """Show this token from now on."""

    @abstractmethod
    async def _check_ready(self, model: UpstreamModel) -> None:
        """Check that the model takes units now."""

    @abstractmethod
    async def _server(self) -> ServerMetadata:
        """Return the server as it describes itself."""

    @abstractmethod
    async def _sha256(self, model: UpstreamModel) -> str | None:
        """Return the hash of the model's file, if the server is of this software."""

    @abstractmethod
    async def _ask(
        self, model: UpstreamModel, kind: Kind, tensors: Tensors, headers: Mapping[str, str]
    ) -> Sequence[OutputTensor]:
        """Return the outputs for these inputs. Raises UnitError too."""

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        """Run the model over n queries of one kind: (n, ...) predictions. Raises UnitError too.

        `headers` go with the request; over gRPC, as metadata.
        """
        try:
            kind = model.signature.kind_of(rows[0])
        except ValueError as error:
            raise UnitError(f"is of a model that {error}") from error
        size, found_rows = model.signature.batch, len(rows)
        if size and found_rows != size:  # the upstream takes exactly `size` rows at once
            runs = batches(found_rows, size)
            parts = [await self.infer(model, [rows[i] for i in run], headers) for run in runs]
            return np.concatenate(parts)[:found_rows]
        outputs = await self._ask(model, kind, kind.input.split(np.stack(rows)), headers)
        if model.prediction is None and outputs:
            name = kind.output.tensors[0].name
            named = [x for x in outputs if x.name == name or x.datatype == BYTES] or outputs
            outputs = [named[0]._replace(name=name)]
            one_each = tuple(named[0].shape) in ((found_rows,), (found_rows, 1))
            if model.labels is not None and named[0].datatype == BYTES and one_each:
                try:
                    return model.labels.outputs(named[0].array())
                except InvalidRequestError as error:
                    raise unreadable(error) from error
        wanted = [
            (each.name, each.datatype, (len(rows), *each.shape)) for each in kind.output.tensors
        ]
        found = [(each.name, each.datatype, tuple(each.shape)) for each in outputs]
        if sorted(found) != sorted(wanted):
            text = f"answered {str(found)[:MAX_TEXT]}, where {wanted} was due"
            raise UpstreamError(Fault.GARBAGE, text)
        arrays = {}
        for output in outputs:
            try:
                arrays[output.name] = output.array()
            except InvalidRequestError as error:  # JSON has no infinity: the unit may be at fault
                text = f"answered values that are not {output.datatype}: {error}"
                raise UnitError(text) from error
        return kind.output.join(arrays)

    async def check(self, model: UpstreamModel) -> None:
        """Check that the upstream has the bundle's model and runs it. Raises UnitError too."""
        await self.check_ready(model)
        await self._describe(model)
        prediction = (await self.infer(model, [model.query], {}))[0, ...]
        if model.prediction is None:
            return
        pairs = zip(tensors_in(prediction), tensors_in(model.prediction), strict=True)
        if not all(is_near(predicted, expected, TOLERANCE) for predicted, expected in pairs):
            raise UpstreamError(
                Fault.MISMATCH,
                f"predicts something else with {model}: more than {TOLERANCE:.0%} of the largest "
                "value away from the bundle's model; make the bundle from what runs there",
            )

    async def _describe(self, model: UpstreamModel) -> None:
        """Ask for the server's description and, if it is of this software, its model's hash."""
        try:
            server = await self._server()
        except UpstreamError as error:
            if error.fault is not Fault.MISMATCH:
                raise
            server = ServerMetadata()  # it does not describe itself; every server reads JSON
        self.abandons = server.name == SOFTWARE
        self.binary = BINARY in server.extensions
        if model.prediction is None:
            return
        if self.abandons and (sha256 := await self._sha256(model)) not in (None, model.sha256):
            raise UpstreamError(
                Fault.MISMATCH,
                f"has another {model}: the sha256 of its file is {str(sha256)[:64]}, the bundle's "
                f"is {model.sha256}; make the bundle from what runs there",
            )


def unreadable(error: Exception) -> UpstreamError:
    """Return the fault of an answer that does not follow the protocol."""
    return UpstreamError(Fault.GARBAGE, f"sent an answer that cannot be read: {error}")
