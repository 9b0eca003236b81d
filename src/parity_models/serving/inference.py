"""The way of every prediction: find the model, read the request, admit it, run it, answer.

REST, gRPC and `Server.predict` bring calls. What they do in their own way is decode a request for
the model that is found, and encode its answer; everything between is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.limits import LARGE, ByteBudget
from parity_models.serving.models import Fitting, Models, Result, ServedModel
from parity_models.serving.protocol import (
    ANSWER_VALUE,
    RequestedOutput,
    RequestParameters,
    TensorParameters,
    Yield,
    no_wait,
)
from parity_models.serving.request_log import CURRENT, RequestLog
from parity_models.tensors.signature import Sizes, Tensor, padded

MAX_TENANT = 128
"""Maximum characters of a tenant's name."""

MAX_JSON_VALUES = 2**20
"""Maximum number of values of an answer in JSON."""

LazyTensor = Callable[[Yield], Awaitable[NDArray[Any]]]
"""Reads a tensor that takes long to read."""

_NO_PARAMETERS, _NO_OUTPUT = RequestParameters(), TensorParameters()

Answer = TypeVar("Answer")


class AskedOutput(NamedTuple):
    """An output that a request asks for, and whether as binary data."""

    tensor: Tensor
    binary: bool


class InferRequest(Struct, eq=False):
    """A request that fits the model: `count` rows, one query each, all of one kind.

    `id` is the client's, if it gave one. `timeout` in seconds; `outputs` are those of the answer.
    `exact`: stand-ins are not to answer. It shares coding groups only with requests of its
    `tenant`. `sizes`: those of the model's dynamic axes, before padding. `tensors` (count, ...), by
    input, are read by `read_rows`, once the request is admitted; `rows` is set if nothing is left
    to read. `answer_size`: the bytes that the server holds for the answer, if they are known.
    `known` is for the codec that made it.
    """

    model: ServedModel
    count: int
    id: str | None
    timeout: float | None
    outputs: Sequence[AskedOutput]
    exact: bool
    tenant: str | None
    sizes: Sizes
    tensors: Mapping[str, NDArray[Any] | LazyTensor]
    rows: NDArray[Any] | None = None
    answer_size: int = 0
    known: Any = None

    def measure_answer(self) -> int:
        """Return the bytes that the server holds for the answer.

        Raises:
            TooLargeError: A JSON answer would take too long to write.

        """
        signature = self.model.signature
        kind = signature.plain or signature.kind(signature.bucket(self.sizes))
        values = 0
        for tensor, binary in self.outputs:
            if not binary:
                at = signature.outputs.index(tensor)
                values += self.count * prod(kind.output.tensors[at].shape)
        if values > MAX_JSON_VALUES:
            raise TooLargeError(
                f"the answer has {values} values, and JSON takes at most {MAX_JSON_VALUES} here; "
                "ask for binary data (binary_data_output; over gRPC, send raw contents), or send "
                "fewer rows at once"
            )
        # The instances' outputs, the answer that is made of them, and its text.
        return 2 * self.count * kind.output.row_bytes + 2 * ANSWER_VALUE * values

    async def read_rows(self, wait: Yield = no_wait) -> NDArray[Any]:
        """Return the rows, read-only: a view of the body if its data are binary.

        Raises:
            InvalidRequestError: The data do not fit the tensors.

        """
        tensors = {}
        for name, data in self.tensors.items():
            tensors[name] = data if isinstance(data, np.ndarray) else await data(wait)
        return padded(tensors, self.model.signature, self.sizes)

    def take_tenant(self, header: str, given: Sequence[str]) -> None:
        """Set the tenant from a header, which has the values `given`.

        The operator chose the header. So a request without it has no known tenant and is served
        exact, whatever its parameters say: queries that are encoded together can influence each
        other.

        Raises:
            InvalidRequestError: The header is given twice, is not a tenant's name, or contradicts
                the parameter.

        """
        if len(given) > 1:
            text = f"the header {header} is given {len(given)} times; give it once"
            raise InvalidRequestError(text)
        if not given:
            self.exact, self.tenant = True, None
            return
        tenant = _tenant_from(given[0], f"the header {header}")
        if self.tenant not in (None, tenant):
            raise InvalidRequestError(
                f"the parameter tenant is {self.tenant!r} and the header {header} is {tenant!r}; "
                "leave out the parameter"
            )
        self.tenant = tenant


def request_of(
    model: ServedModel,
    fitting: Fitting,
    tensors: Mapping[str, NDArray[Any] | LazyTensor],
    *,
    id: str | None,
    parameters: RequestParameters | None,
    outputs: Iterable[RequestedOutput],
) -> InferRequest:
    """Return a request that fits the model, with these tensors, by input.

    Raises:
        InvalidRequestError: A parameter is invalid.

    """
    parameters = parameters or _NO_PARAMETERS
    usual, asked = bool(parameters.binary_data_output), []
    for output, wanted in zip_longest(fitting.outputs, outputs):
        binary = ((wanted and wanted.parameters) or _NO_OUTPUT).binary_data
        asked.append(AskedOutput(output, usual if binary is None else binary))
    exact, tenant = model.is_exact(fitting.outputs), parameters.tenant
    if parameters.redundancy not in (None, "any", "exact"):
        given = _shown(parameters.redundancy)
        raise InvalidRequestError(f"the parameter redundancy is 'any' or 'exact', got {given}")
    return InferRequest(
        model,
        fitting.rows,
        id,
        parameters.timeout / 1e6 if parameters.timeout else None,
        asked,
        exact or parameters.redundancy == "exact",
        None if tenant is None else _tenant_from(tenant, "the parameter tenant"),
        fitting.sizes,
        tensors,
    )


def _tenant_from(value: object, what: str) -> str:
    """Return the tenant's name in `what`. Raises InvalidRequestError for another value."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TENANT:
        raise InvalidRequestError(
            f"{what} is a string of 1 to {MAX_TENANT} characters, got {_shown(value)}"
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


class Call(ABC, Generic[Answer]):
    """A request for predictions as its carrier brings it, and the bytes that it holds.

    It is for this `version` of the `model`; None: the server's choice. `headers` are the client's,
    or the metadata; `timeout` is the carrier's own, in seconds. `body` is dropped once it is read.
    """

    model = ""
    version: str | None = None
    log: RequestLog | None = None
    headers: Mapping[str, str] = {}
    timeout: float | None = None
    body: Any = b""
    budget = ByteBudget(0)
    held = 0

    @abstractmethod
    def read(self, model: ServedModel) -> InferRequest:
        """Decode the body, except for the data of tensors that take long to read.

        Raises:
            RequestError: The request does not fit the model.

        """

    def values(self, header: str) -> Sequence[str]:
        """Return all values of a header, as they were given; by default none."""
        return ()

    @abstractmethod
    async def write(self, asked: InferRequest, result: Result) -> Answer:
        """Encode the answer.

        Raises:
            RequestError: It cannot be expressed in the form that the client asked for.

        """

    def hold(self, size: int) -> None:
        """Hold this many more bytes of the budget. Raises a RequestError if they exceed it."""
        budget = self.budget
        if budget.held + size > budget.most:
            raise budget.exceeded(size)
        budget.held += size
        self.held += size

    def release(self) -> None:
        """Drop the body, and return all bytes to the budget. It may be called twice."""
        self.budget.held -= self.held
        self.held = 0
        self.body = b""


class Inference:
    """Answers calls by the models of a server. `budget` bounds the bytes of all calls together."""

    def __init__(self, models: Models, budget: ByteBudget) -> None:
        self.models = models
        self.budget = budget

    async def answer(self, call: Call[Answer]) -> Answer:
        """Answer a call. If this is cancelled, its queries are abandoned.

        Raises:
            RequestError: It is refused, or a row gets no answer.

        """
        log = call.log
        CURRENT.set(log)
        while True:
            # The version is chosen here, and asked before anything is awaited.
            version = self.models.find(call.model, call.version)
            model = version.model
            if log is not None:
                log.metrics = version.metrics
            asked = call.read(model)
            if model.tenant_header is not None:
                asked.take_tenant(model.tenant_header, call.values(model.tenant_header))
            timeout = asked.timeout
            if call.timeout is not None:
                timeout = call.timeout if timeout is None else min(timeout, call.timeout)
            if log is not None and asked.id is not None:
                log.id_in_body(asked.id)
            if asked.count > LARGE:
                version.predictor.check_admission(asked.count, timeout)
            size = asked.answer_size or asked.measure_answer()
            call.hold(size)
            rows = asked.rows
            if rows is not None:
                break
            rows = await asked.read_rows(self.budget.turn)
            if version is self.models.find(call.model, call.version):
                break
            call.hold(-size)  # another version took over as the rows were read
        call.body, asked.tensors = b"", {}
        result = await version.predictor.infer(
            rows, timeout, tenant=asked.tenant, exact=asked.exact
        )
        if (labels := asked.model.labels) is not None:
            result = msgspec.structs.replace(result, outputs=labels.texts(result.outputs))
        if log is not None:
            log.model, log.version, log.sources = model.name, model.version, result.sources
        return await call.write(asked, result)
