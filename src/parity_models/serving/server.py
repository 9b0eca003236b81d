"""A server: models, and the protocols in front of them: HTTP, gRPC, metrics."""

import asyncio
import threading
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import uvloop
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.access import HEALTH, METRICS, watch
from parity_models.serving.deployment import Deployment
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.http import GRACE, HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget, allow_descriptors
from parity_models.serving.models import ServedVersion
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.page.feed import Page
from parity_models.serving.protocol import TensorMessage
from parity_models.serving.repository import Repository
from parity_models.serving.rest import Rest
from parity_models.serving.stand_in_only import StandInOnly
from parity_models.tensors.signature import cut, padded

if TYPE_CHECKING:
    from parity_models.serving.grpc.grpc_server import GrpcServer
    from parity_models.serving.tracing import Tracing

__all__ = ["Predictions", "ServeOptions", "Server", "Serving", "serve"]

_SCRAPERS = 32
"""Connections to the port for metrics at a time."""

_OF_REPOSITORY = 64
"""Instances of a repository's models for which file descriptors are reserved."""

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
        self.models: Deployment | StandInOnly | Repository
        """The models, as the protocols see them."""
        if isinstance(models, Bundle):
            if options.stand_in_only:
                self.models = StandInOnly(models, options)
            else:
                self.models = Deployment(models, options, tracing=tracing)
            title = self.models.model.name
            self._instances = len(self.models.roles)
        else:
            self.models = Repository(models, options, allow_code, tracing)
            title = models.resolve().name
            self._instances = _OF_REPOSITORY
        self._budget = ByteBudget(options.limits.max_in_flight)
        self._certificate = certificate = options.access.certificate()
        self._clients = options.access.clients()
        self._https: list[HttpServer] = []
        if options.port is not None:
            page = None
            if options.ui:
                several = isinstance(self.models, Repository)
                page = Page(title, self.models.feed_of, repository=several)
            rest = Rest(
                self.models,
                options.limits,
                self._budget,
                clients=self._clients,
                lacks=() if options.access.metrics_port is None else (METRICS,),
                pages=None if page is None else page.routes(),
                open_paths=() if page is None else page.open_paths,
                tracing=tracing,
            )
            tls = None if certificate is None else lambda: certificate.context
            self._https.append(HttpServer(rest, tls))
        if options.access.metrics_port is not None:
            few = replace(options.limits, max_connections=_SCRAPERS)
            only = (METRICS, *HEALTH)
            self._https.append(HttpServer(Rest(self.models, few, self._budget, only=only)))
        self._grpc: GrpcServer | None = None
        self._was_started = False
        self._watching: asyncio.Task[None] | None = None
        self.grpc_url: str | None = None
        """The URL of gRPC, once the server is started, if it speaks gRPC."""
        self.metrics_url: str | None = None
        """The URL of the metrics, once the server is started, if they have a port of their own."""
        metrics = self.models.metrics
        metrics.connections.set_function(lambda: sum(each.connections for each in self._https))
        metrics.bytes_in_flight.set_function(lambda: self._budget.held)

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
        allow_descriptors(connections, self._instances)
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

    def switch_redundancy(self, on: bool) -> None:
        """Switch redundant work on or off for the models loaded now; later ones have it on."""
        models = self.models
        running = models.running() if isinstance(models, Repository) else [models]
        for each in running:
            if isinstance(each, Deployment):
                each.frontend.switch_redundancy(on)

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
            InvalidRequestError: The inputs do not fit the model.
            RequestError: A query got no answer.

        """
        assert isinstance(self.models, ServedVersion), "the server is of a repository"
        model, frontend = self.models.model, self.models.frontend
        signature = model.signature
        named = inputs if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}
        tensors = {each.name: each for each in signature.inputs}
        arrays, given = {}, []
        for name, values in named.items():
            tensor = tensors.get(name)  # None: unknown input; check_request reports it
            arrays[name] = _as_array(name, values, None if tensor is None else tensor.dtype)
            datatype = "" if tensor is None else tensor.datatype
            given.append(TensorMessage(name, datatype, arrays[name].shape))
        fitting = model.check_request(given, ())
        rows = padded(arrays, signature, fitting.sizes)
        exact = exact or model.is_exact(fitting.outputs)
        result = await frontend.infer(rows, timeout, tenant=tenant, exact=exact)
        outputs = cut(result.outputs, signature, fitting.sizes)
        return Predictions(outputs, tuple(map(str, result.sources)))

    async def _open(self) -> None:
        options, shares = self.options, self.options.reuse_port
        if options.grpc_port is not None:
            # Imported here, as gRPC is an extra, and before HTTP, whose clients would wait for it.
            from parity_models.serving.grpc.grpc_server import GrpcServer

            self._grpc = GrpcServer(
                self.models,
                options.limits,
                self._budget,
                clients=self._clients,
                reuse_port=shares,
                tracing=self._tracing,
            )
            tls = None if self._certificate is None else self._certificate.grpc_credentials()
            self.grpc_url = await self._grpc.start(options.host, options.grpc_port, tls)
        if options.port is not None:
            self._socket = listen(options.host, options.port, reuse_port=options.reuse_port)
            self._https[0].start(self._socket)
        if options.access.metrics_port is not None:
            of_metrics = listen(options.host, options.access.metrics_port, reuse_port=shares)
            self._https[-1].start(of_metrics)
            self.metrics_url = url_of(of_metrics) + METRICS
        files = (self._certificate, self._clients.tokens, self._clients.administrators)
        watched = [each for each in files if each is not None]
        if watched:
            self._watching = asyncio.create_task(watch(*watched))

    async def _close(self) -> None:
        """Close what is open, after the answers that are under way, and send all spans."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._stop_listening(GRACE)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _stop_listening(self, grace: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(grace)
        for each in self._https:
            await each.stop(grace)


def _as_array(name: str, values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values)
    try:
        return array if dtype is None else array.astype(dtype, casting="same_kind", copy=False)
    except TypeError as error:
        raise InvalidRequestError(
            f"input {name!r} is of {np.dtype(dtype)}, and {array.dtype} cannot become that; "
            "convert it yourself"
        ) from error


class Serving:
    """Runs a server while a block runs. `async with` gives the Server; `with` gives this, which
    runs it on an event loop in its own thread, for callers without one."""

    def __init__(self, server: Server) -> None:
        self._server = server

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
        return self._run(self._server.predict(inputs, timeout=timeout, tenant=tenant, exact=exact))

    def _run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


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
        **given: Fields of ServeOptions, in place of `options`. A policy or an engine may be given
            by its name. With a `port`, the server speaks the protocol at `server.url`.

    Returns:
        A context. The server starts as the block is entered, and stops at its end, when queries in
        flight are answered.

    Raises:
        UserError: For options that are wrong or do not fit the bundle.
        ServingError: If an instance does not start, as the block is entered.

    """
    if options is None:
        for field, choice in (("policy", PolicyChoice), ("engine", EngineChoice)):
            if isinstance(given.get(field), str):
                given[field] = choice(given[field])
        options = ServeOptions(**{"port": None, **given})
    elif given:
        raise TypeError("give options as one ServeOptions or by name, not both")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    return Serving(Server(opened, options))
