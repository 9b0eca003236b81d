"""A server: models, and the protocols in front of them: HTTP, gRPC, metrics."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import uvloop
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.queries import cut, padded
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.access import HEALTH, METRICS, Reread, watch
from parity_models.serving.deployment import Deployment
from parity_models.serving.engines import EngineChoice
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.http.http_server import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget, allow_descriptors
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models, OneModel
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.routes import Page
from parity_models.serving.rest.asgi import AsgiApp
from parity_models.serving.rest.messages import Request, Response
from parity_models.serving.rest.scrapes import metrics_response
from parity_models.serving.rest.service import Rest
from parity_models.serving.served_model import GivenTensor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from parity_models.serving.grpc.grpc_server import GrpcServer
    from parity_models.serving.tracing import Tracing

__all__ = ["Predictions", "ServeOptions", "Server", "SyncServer", "serve"]

_SCRAPERS = 32
"""Connections to the port for metrics at a time."""

Returned = TypeVar("Returned")


class Served(Protocol):
    """The models behind a server: started, drained and stopped once. A Deployment, or several."""

    async def start(self) -> None:
        """Start all instances; return when they take queries."""

    def retire(self) -> None:
        """Stop being ready, but still take queries."""

    def switch_redundancy(self, on: bool) -> None:
        """Send redundant work from now on, or none."""

    def close_feed(self) -> None:
        """End the streams of the live page."""

    async def drain(self) -> None:
        """Take no more queries; return when those in flight have ended."""

    async def stop(self) -> None:
        """Stop all instances at once."""


class ProtocolServer:
    """The protocols in front of some models. Runs from `start` to `stop`, or as an async context.

    Args:
        served: What is started and stopped with it.
        models: The models, as the protocols ask for them.
        metrics: Count connections, and requests that are for no model.
        options: Those of the server.
        collector: What /metrics shows.
        page: The live page, if there is to be one.
        tracing: Makes spans of requests.
        instances: Instances that file descriptors are reserved for.

    Raises:
        UserError: A file cannot be used.

    """

    def __init__(
        self,
        served: Served,
        models: Models,
        metrics: Metrics,
        options: ServeOptions,
        *,
        collector: Collector,
        page: Page | None,
        tracing: "Tracing | None",
        instances: int,
    ) -> None:
        self._served = served
        self._models = models
        self._metrics = metrics
        self._options = options
        self._collector = collector
        self._tracing = tracing
        self._instances = instances
        self._budget = ByteBudget(options.limits.max_in_flight)
        self._certificate = options.access.certificate()
        self._tokens = options.access.read_tokens()
        self._https = self._http_servers(page)
        self._grpc: GrpcServer | None = None
        self._watching: asyncio.Task[None] | None = None
        self.watched = page is not None
        """Whether it has a live page."""
        self.grpc_url: str | None = None
        """The URL of gRPC, once the server is started, if it speaks gRPC."""
        self.metrics_url: str | None = None
        """The URL of the metrics, once the server is started, if they have a port of their own."""
        metrics.connections.set_function(lambda: sum(each.connections for each in self._https))
        metrics.bytes_in_flight.set_function(lambda: self._budget.held)
        if self._certificate is not None:
            metrics.certificate_expires(self._certificate.ends)

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once the server is started, if it has a
        port."""
        return url_of(self._socket, "http" if self._certificate is None else "https")

    @property
    def takes_tokens(self) -> bool:
        """Whether clients must show a token."""
        return self._tokens is not None

    async def start(self) -> None:
        """Bind, and start what is served; return when it is ready. It is live, but not ready,
        before. Nothing is left running if it fails.

        Raises:
            UserError: It cannot listen where it should.
            ServingError: An instance does not start.

        """
        options, limits = self._options, self._options.limits
        connections = limits.max_connections
        connections += 0 if options.grpc_port is None else limits.max_rpcs
        connections += 0 if options.access.metrics_port is None else _SCRAPERS
        allow_descriptors(connections, self._instances)
        if options.port is not None:
            self._socket = listen(options.host, options.port)
            self._https[0].start(self._socket)
        try:
            await self._open_others()
            await self._served.start()
        except BaseException:
            await self._close()
            raise

    def switch_redundancy(self, on: bool) -> None:
        """Send redundant work from now on, or none, whatever the policy."""
        self._served.switch_redundancy(on)

    async def stop(self) -> None:
        """Stop being ready; after the options' `shutdown_delay`, refuse new requests, answer those
        in flight, and stop all instances. Does not wait for answers where it is cancelled."""
        self._served.retire()
        try:
            await asyncio.sleep(self._options.shutdown_delay)
            self._served.close_feed()
            for each in self._https:
                each.drain()
            await self._served.drain()
        finally:
            await self._served.stop()
            await self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def app(self) -> AsgiApp:
        """Return the protocol as an ASGI application, to mount into another one. It answers while
        this server runs."""
        return AsgiApp(self._rest(None))

    async def _open_others(self) -> None:
        options = self._options
        if options.access.metrics_port is not None:
            of_metrics = listen(options.host, options.access.metrics_port)
            self._https[-1].start(of_metrics)
            self.metrics_url = url_of(of_metrics) + METRICS
        if options.grpc_port is not None:
            # Imported here: gRPC is an extra, and slow to import.
            from parity_models.serving.grpc.grpc_server import GrpcServer

            self._grpc = GrpcServer(
                self._models,
                self._metrics,
                options.limits,
                self._budget,
                tokens=self._tokens,
                tracing=self._tracing,
            )
            tls = None if self._certificate is None else self._certificate.grpc_credentials()
            self.grpc_url = await self._grpc.start(options.host, options.grpc_port, tls)
        watched: list[Reread] = [
            each for each in (self._certificate, self._tokens) if each is not None
        ]
        if watched:
            self._watching = asyncio.create_task(watch(*watched))

    async def _close(self) -> None:
        """Close what is open, after the answers that are under way, and send all spans."""
        self._served.close_feed()
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        if self._grpc is not None:
            await self._grpc.stop()
        for each in self._https:
            await each.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _http_servers(self, page: Page | None) -> list[HttpServer]:
        """Return the server, if it has a port, and that of the metrics, if they have one."""
        certificate, servers = self._certificate, []
        if self._options.port is not None:
            tls = None if certificate is None else lambda: certificate.context
            servers.append(HttpServer(self._rest(page), self._metrics, tls))
        if self._options.access.metrics_port is not None:
            few = replace(self._options.limits, max_connections=_SCRAPERS)
            has = (METRICS, *HEALTH).__contains__
            scraped = Rest(
                self._models, self._metrics, few, self._budget, self._read_metrics, has=has
            )
            servers.append(HttpServer(scraped, self._metrics))
        return servers

    def _rest(self, page: Page | None) -> Rest:
        apart = self._options.access.metrics_port is not None
        return Rest(
            self._models,
            self._metrics,
            self._options.limits,
            self._budget,
            self._read_metrics,
            tokens=self._tokens,
            has=METRICS.__ne__ if apart else lambda path: True,
            pages=None if page is None else page.routes(),
            open_paths=() if page is None else page.open_paths,
            tracing=self._tracing,
        )

    async def _read_metrics(self, request: Request) -> Response:
        return metrics_response(request, self._collector)


class Predictions(Struct, frozen=True, eq=False):
    """Predictions of n queries: `outputs` (n, ...) by name, and the source of each row."""

    outputs: Mapping[str, NDArray[Any]]
    sources: tuple[str, ...]

    @property
    def output(self) -> NDArray[Any]:
        """The one output (n, ...) of a model that has one."""
        (only,) = self.outputs.values()
        return only


class Server(ProtocolServer):
    """Serves a bundle over the Open Inference Protocol, with the instances of an engine.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url; server.grpc_url and server.metrics_url, if there are such

    Args:
        bundle: The bundle.
        options: How to serve it.
        traces: Gets the spans of requests.

    Raises:
        UserError: The options do not fit the bundle, or a file cannot be used.

    """

    def __init__(
        self,
        bundle: Bundle,
        options: ServeOptions | None = None,
        traces: "TracerProvider | None" = None,
    ) -> None:
        options = options or ServeOptions()
        tracing = tracing_to(traces)
        self._deployment = deployment = Deployment(bundle, options, tracing=tracing)
        self.policy, self.roles = deployment.choice.name, deployment.roles
        self.model = deployment.model
        self.notes = deployment.notes
        self.engine, self.frontend = deployment.engine, deployment.frontend
        page = None
        if options.ui:
            page = Page(self.model.name, self._feed, repository=False)
        super().__init__(
            deployment,
            OneModel(deployment.frontend, deployment.model),
            deployment.metrics,
            options,
            collector=self.registry,
            page=page,
            tracing=tracing,
            instances=len(self.roles),
        )

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics, for callers in this process."""
        return self._deployment.metrics.registry

    @property
    def ready(self) -> bool:
        """Whether a query would be answered."""
        return self.frontend.ready

    @property
    def listens(self) -> bool:
        """Whether it has a port for HTTP."""
        return self._options.port is not None

    async def predict(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Predictions:
        """Answer a query for each row.

        Args:
            inputs: Rows (n, ...), or an array of rows for each input by name. Not to be changed
                before the answer.
            timeout: Seconds; shortens the deadline.
            tenant: Queries share codes only with those of the same tenant.
            exact: Only the deployed model may answer.

        Raises:
            InvalidRequestError: The inputs are not the model's.
            RequestError: A query got no answer.

        """
        signature = self.model.signature
        named = inputs if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}
        datatypes = {each.name: (each.dtype, each.datatype) for each in signature.inputs}
        arrays, given = {}, []
        for name, values in named.items():
            dtype, datatype = datatypes.get(name, (None, ""))
            arrays[name] = _as_array(name, values, dtype)
            given.append(GivenTensor(name, datatype, arrays[name].shape, shared_memory=False))
        fitting = self.model.check_request(given, ())
        rows = padded(arrays, signature, fitting.sizes)
        exact = exact or self.model.is_exact(fitting.outputs)
        result = await self.frontend.infer(rows, timeout, tenant=tenant, exact=exact)
        outputs = cut(result.outputs, signature, fitting.sizes)
        return Predictions(outputs, tuple(map(str, result.sources)))

    def begin_faults(self) -> None:
        """Let the time of the options' fault plan begin now, if there is one."""
        self._deployment.begin_faults()

    def busy_seconds(self) -> float:
        """Return how long instances have been busy, all together."""
        return sum(self.frontend.busy_seconds().values())

    def _feed(self, asked: Mapping[str, str]) -> Feed | None:
        return self._deployment.feed


def _as_array(name: str, values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if dtype is None:
        return array  # unknown input; check_request reports it
    try:
        return array.astype(dtype, casting="same_kind", copy=False)
    except TypeError as error:
        raise InvalidRequestError(
            f"input {name!r} is of {np.dtype(dtype)}, and {array.dtype} cannot become that; "
            "convert it yourself"
        ) from error


def tracing_to(provider: "TracerProvider | None") -> "Tracing | None":
    """Return what makes spans for the provider, if there is one."""
    if provider is None:
        return None
    # Imported here: OpenTelemetry is an extra.
    from parity_models.serving.tracing import Tracing

    return Tracing(provider)


class SyncServer:
    """A server that runs on an event loop in a thread of its own, for callers without one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str | None:
        """The base URL, as http://127.0.0.1:8000; None without a port."""
        return self._server.url if self._server.listens else None

    @property
    def grpc_url(self) -> str | None:
        """The URL of gRPC, if it speaks gRPC."""
        return self._server.grpc_url

    @property
    def ready(self) -> bool:
        """Whether a query would be answered."""
        return self._server.ready

    def predict(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Predictions:
        """Answer a query for each row, as Server.predict does. May be called from many threads."""
        return self._run(self._server.predict(inputs, timeout=timeout, tenant=tenant, exact=exact))

    def start(self) -> None:
        """Start the server; return when it is ready. Raises what Server.start raises."""
        self._thread.start()
        try:
            self._run(self._server.start())
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """Answer the requests in flight, and stop."""
        try:
            self._run(self._server.stop())
        finally:
            self._end_loop()

    def _run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Serving:
    """Serves a bundle while a block runs: `with` gives a SyncServer, `async with` a Server."""

    def __init__(self, make: Callable[[], Server]) -> None:
        self._make = make
        self._server: Server | None = None
        self._sync: SyncServer | None = None

    def __enter__(self) -> SyncServer:
        self._sync = SyncServer(self._make())
        self._sync.start()
        return self._sync

    def __exit__(self, *error: object) -> None:
        assert self._sync is not None
        self._sync.stop()

    async def __aenter__(self) -> Server:
        self._server = self._make()
        await self._server.start()
        return self._server

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        await self._server.stop()


def serve(
    bundle: Bundle | Path | str, options: ServeOptions | None = None, /, **given: Any
) -> Serving:
    """Serve a bundle, or the one in a folder, while a block runs.

    with serve("bundle", instances=4) as server:
        result = server.predict(rows)  # result.output, result.sources

    async with serve("bundle", policy="adaptive", port=None) as server:
        result = await server.predict(rows)

    Args:
        bundle: The bundle, or its folder.
        options: How to serve it; by default it listens on no port.
        given: Fields of ServeOptions, in place of `options`. A policy or an engine may be given by
            its name. With a `port`, it answers the protocol at `server.url`; mount `server.app()`
            to answer it as a part of your own ASGI application.

    Raises:
        UserError: The options are wrong, or do not fit the bundle.
        ServingError: An instance does not start, as the block is entered.

    """
    if options is None:
        for field, choice in (("policy", PolicyChoice), ("engine", EngineChoice)):
            if isinstance(given.get(field), str):
                given[field] = choice(given[field])
        options = ServeOptions(**{"port": None, **given})
    elif given:
        raise TypeError("give options as one ServeOptions or by name, not both")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    return Serving(lambda: Server(opened, options))
