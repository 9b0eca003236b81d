"""A server: models, and the protocols in front of them: HTTP, gRPC, metrics."""

import asyncio
import threading
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import numpy as np
import uvloop
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError
from parity_models.options import gather
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.access import HEALTH, METRICS, watch
from parity_models.serving.deployment import Deployment
from parity_models.serving.errors import InvalidRequestError, UnavailableError
from parity_models.serving.http import GRACE, HttpServer, listen, url_of
from parity_models.serving.inference import Call, Inference, InferRequest, request_of
from parity_models.serving.limits import ByteBudget, allow_descriptors
from parity_models.serving.models import Models, Result, ServedModel
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.page.feed import Page
from parity_models.serving.protocol import RequestParameters
from parity_models.serving.repository import Repository
from parity_models.serving.rest import Rest
from parity_models.serving.stand_in_only import CLASSIFY, Classify, StandInOnly
from parity_models.tensors.signature import cut, padded
from parity_models.tensors.texts import as_texts

if TYPE_CHECKING:
    from parity_models.fields import ServeOptionsFields
    from parity_models.serving.grpc.grpc_server import GrpcServer
    from parity_models.serving.tracing import Tracing

__all__ = ["Predictions", "ServeOptions", "Server", "Serving", "serve"]

_SCRAPERS = 32
"""Connections to the port for metrics at a time."""

Returned = TypeVar("Returned")


class Predictions(Struct, frozen=True, eq=False):
    """Predictions of n queries: `outputs` (n, ...) by name, and the source of each row."""

    outputs: Mapping[str, NDArray[Any]]
    sources: tuple[str, ...]

    @property
    def output(self) -> NDArray[Any]:
        """The output (n, ...) of a model that has only one."""
        (only,) = self.outputs.values()
        return only


class Server:
    """Serves a bundle, or a repository of them, over the Open Inference Protocol. Runs from `start`
    to `stop`, or as an async context.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url; server.grpc_url and server.metrics_url, if any

    Args:
        models: The bundle; or the folder of a repository, which has bundles as NAME/VERSION.
        options: How to serve the bundle, or each model of the repository.
        tracing: Makes spans of requests.
        allow_code: Names of the user's own code that bundles of a repository may load.

    Raises:
        UserError: The options do not fit the models, or a file cannot be used.

    """

    def __init__(
        self,
        models: Bundle | Path,
        options: ServeOptions | None = None,
        tracing: "Tracing | None" = None,
        allow_code: Collection[str] = (),
    ) -> None:
        self.options = options = options or ServeOptions()
        """The options that it serves with."""
        self._tracing = tracing
        self.models = _models(models, options, allow_code, tracing)
        """The models, as the protocols see them."""
        budget = ByteBudget(options.limits.max_in_flight)
        make = Inference if tracing is None else tracing.inference
        self._inference = inference = make(self.models, budget)
        self._certificate = certificate = options.access.certificate()
        self._clients = options.access.clients()
        self._https: list[HttpServer] = []
        if options.port is not None:
            page = Page(self.models) if options.ui else None
            pages = {} if page is None else dict(page.routes())
            if options.stand_in_only and isinstance(models, Bundle):
                classify = Classify(inference, models, options.limits.max_json)
                pages[CLASSIFY] = ("POST", classify)
            rest = Rest(
                inference,
                options.limits,
                clients=self._clients,
                lacks=() if options.access.metrics_port is None else (METRICS,),
                pages=pages,
                open_paths=() if page is None else page.open_paths,
            )
            tls = None if certificate is None else lambda: certificate.context
            self._https.append(HttpServer(rest, tls))
        if options.access.metrics_port is not None:
            few = replace(options.limits, max_connections=_SCRAPERS)
            only = (METRICS, *HEALTH)
            self._https.append(HttpServer(Rest(inference, few, only=only)))
        self._grpc: GrpcServer | None = None
        self._was_started = False
        self._watching: asyncio.Task[None] | None = None
        self.grpc_url: str | None = None
        """The URL of gRPC, once the server is started, if it speaks gRPC."""
        self.metrics_url: str | None = None
        """The URL of the metrics, once the server is started, if they have a port of their own."""
        metrics = self.models.metrics
        metrics.connections.set_function(lambda: sum(each.connections for each in self._https))
        metrics.bytes_in_flight.set_function(lambda: budget.held)

    @property
    def deployment(self) -> Deployment:
        """The deployment of the one bundle; a server of a repository has several."""
        assert isinstance(self.models, Deployment), "the server has no deployment, or several"
        return self.models

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000, once the server is started; "" without a port."""
        if self.options.port is None:
            return ""
        return url_of(self._socket, "http" if self._certificate is None else "https")

    async def start(self) -> None:
        """Bind, start the models, and return when all is ready. Until then the server is live, but
        not ready; a server that shares its port binds only then. If this fails, nothing is left
        running.

        Raises:
            UserError: It cannot listen at its address, or has been started before.
            ServingError: An instance does not start.

        """
        if self._was_started:
            raise UserError("a server starts once; make another one to serve again")
        self._was_started = True
        options, limits = self.options, self.options.limits
        connections = limits.max_connections
        connections += 0 if options.grpc_port is None else limits.max_rpcs
        connections += 0 if options.access.metrics_port is None else _SCRAPERS
        allow_descriptors(connections, self.models.instances)
        steps = [self._open, self.models.start]
        try:
            for step in reversed(steps) if options.reuse_port else steps:
                await step()
        except BaseException:
            await self.models.stop()
            await self._close()
            raise

    async def stop(self) -> None:
        """Report not ready, and ask clients to reconnect. After the `shutdown_delay`, refuse new
        requests, answer those in flight, and stop all instances. Until then, new connections are
        accepted, unless other servers share the port. If this is cancelled, it does not wait for
        answers."""
        self.models.retire()
        try:
            for each in self._https:
                each.closing = True
                if self.options.reuse_port:
                    await each.leave()
            await asyncio.sleep(self.options.shutdown_delay)
            if self.options.reuse_port:  # so that no connection brings a request to be refused
                await self._stop_listening(self.options.deadline + GRACE)
            await self.models.drain()
        finally:
            await self.models.stop()
            await self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def predict(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Predictions:
        """Answer each row, as a query of its own, by the served bundle.

        Args:
            inputs: Rows (n, *input shape), or an array of rows for each input by name. Not to be
                changed before the answer.
            timeout: Seconds; shortens the deadline.
            tenant: Queries share coding groups only with those of the same tenant.
            exact: Only the deployed model may answer.

        Returns:
            The outputs (n, ...) by name, and the source of each row.

        Raises:
            InvalidRequestError: The inputs do not fit the model, or the timeout is not a number.
            RequestError: A query got no answer.

        """
        only = self.models.only
        assert only is not None, "the server is of a repository"
        if timeout is not None and isnan(timeout):
            raise InvalidRequestError("the timeout is not a number of seconds")
        if not isinstance(inputs, Mapping):
            inputs = {only.model.signature.inputs[0].name: inputs}
        call = _Predict(
            model=only.model.name,
            body=inputs,
            timeout=timeout,
            budget=self._inference.budget,
            tenant=tenant,
            exact=exact,
        )
        try:
            return await self._inference.answer(call)
        finally:
            call.release()

    async def _open(self) -> None:
        options, shares = self.options, self.options.reuse_port
        if options.grpc_port is not None:
            # Imported here, as gRPC is an extra, and before HTTP, whose clients would wait for it.
            from parity_models.serving.grpc.grpc_server import GrpcServer

            self._grpc = GrpcServer(
                self._inference,
                options.limits,
                clients=self._clients,
                certificate=self._certificate,
                reuse_port=shares,
            )
            self.grpc_url = await self._grpc.start(options.host, options.grpc_port)
        if options.port is not None:
            self._socket = listen(options.host, options.port, reuse_port=options.reuse_port)
            self._https[0].serve(self._socket)
        if options.access.metrics_port is not None:
            of_metrics = listen(options.host, options.access.metrics_port, reuse_port=shares)
            self._https[-1].serve(of_metrics)
            self.metrics_url = url_of(of_metrics) + METRICS
        files = (self._certificate, self._clients.tokens, self._clients.administrators)
        watched = (each for each in files if each is not None)
        self._watching = asyncio.create_task(watch(*watched))

    async def _close(self) -> None:
        """Close what is open, after the answers that are under way, and send all spans."""
        if self._watching is not None:
            self._watching.cancel()
        await self._stop_listening(GRACE)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _stop_listening(self, grace: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(grace)
        for each in self._https:
            await each.stop(grace)


def _models(
    models: Bundle | Path,
    options: ServeOptions,
    allow_code: Collection[str],
    tracing: "Tracing | None",
) -> Models:
    if not isinstance(models, Bundle):
        return Repository(models, options, allow_code, tracing)
    if options.stand_in_only:
        return StandInOnly(models, options)
    return Deployment(models, options, tracing=tracing)


@dataclass(eq=False, kw_only=True)
class _Predict(Call[Predictions]):
    """A call of `predict`; its body is rows of inputs by name."""

    model: str
    body: Mapping[str, ArrayLike]
    timeout: float | None
    budget: ByteBudget
    tenant: str | None
    exact: bool

    def values(self, header: str) -> Sequence[str]:
        return () if self.tenant is None else (self.tenant,)

    def read(self, model: ServedModel) -> InferRequest:
        signature = model.signature
        dtypes = {each.name: each.dtype for each in signature.inputs}
        datatypes = {each.name: each.datatype for each in signature.inputs}
        arrays = {name: _as_array(name, rows, dtypes.get(name)) for name, rows in self.body.items()}
        # check_request reports unknown inputs
        fitting = model.check_request(
            [(name, datatypes.get(name, ""), each.shape) for name, each in arrays.items()]
        )
        rows = padded(arrays, signature, fitting.sizes)
        self.hold(rows.nbytes)
        redundancy = "exact" if self.exact else None
        given = RequestParameters(
            binary_data_output=True, redundancy=redundancy, tenant=self.tenant
        )
        asked = request_of(model, fitting, {}, id=None, parameters=given, outputs=())
        asked.rows = rows
        return asked

    async def write(self, asked: InferRequest, result: Result) -> Predictions:
        outputs = cut(result.outputs, asked.model.signature, asked.sizes)
        return Predictions(outputs, tuple(map(str, result.sources)))


def _as_array(name: str, values: ArrayLike, dtype: Any) -> NDArray[Any]:
    try:
        array = np.asarray(values)
        if dtype is None or dtype.hasobject:
            return array if dtype is None else as_texts(array)
        as_input = array.astype(dtype, casting="same_kind", copy=False)
        if as_input is not array and dtype.kind in "iu" and (as_input != array).any():
            raise ValueError(f"has numbers beyond {dtype}")
        return as_input
    except TypeError as error:
        raise InvalidRequestError(
            f"input {name!r} is of {np.dtype(dtype)}, and {array.dtype} cannot become that; "
            "convert it yourself"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(f"input {name!r} {error}") from error


class Serving:
    """Runs a server while a block runs. `async with` gives the Server; `with` gives this, which
    runs it on an event loop in its own thread, for callers without one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Server:
        return await self._server.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._server.stop()

    def __enter__(self) -> Self:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._run(self._server.start())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._run(self._server.stop())
        finally:
            self._end_loop()

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; "" without a port."""
        return self._server.url

    @property
    def grpc_url(self) -> str | None:
        """The URL of gRPC, if it speaks gRPC."""
        return self._server.grpc_url

    def predict(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Predictions:
        """Answer a query for each row, as Server.predict does. May be called from many threads."""
        if self._thread is None or not self._thread.is_alive():
            raise UnavailableError("the server runs only while its block does")
        return self._run(self._server.predict(inputs, timeout=timeout, tenant=tenant, exact=exact))

    def _run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def serve(
    bundle: Bundle | Path | str,
    options: ServeOptions | None = None,
    /,
    **given: Unpack["ServeOptionsFields"],
) -> Serving:
    """Serve a bundle, or the one in a folder, while a block runs.

    with serve("bundle", instances=4) as server:
        result = server.predict(rows)  # result.output, result.sources

    async with serve("bundle", policy="adaptive", port=None) as server:
        result = await server.predict(rows)

    Args:
        bundle: The bundle, or its folder.
        options: How to serve it; by default it listens on no port.
        **given: Fields of ServeOptions, in place of `options`. A policy or an engine may be text,
            as hedging@hedge-delay=5ms. With a `port`, the server speaks the protocol at
            `server.url`.

    Returns:
        A context. The server starts as the block is entered, and stops at its end, when queries in
        flight are answered.

    Raises:
        UserError: For options that are wrong or do not fit the bundle.
        ServingError: If an instance does not start, as the block is entered.

    """
    fields: dict[str, Any] = {} if options is not None else {"port": None}
    fields |= given
    for field, choice in (("policy", PolicyChoice), ("engine", EngineChoice)):
        if isinstance(fields.get(field), str):
            fields[field] = choice.parse(fields[field])
    options = gather(ServeOptions, options, fields)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    return Serving(Server(opened, options))
