"""The ports that clients connect to: HTTP, gRPC and metrics, in front of a server's models."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from parity_models.serving.access import HEALTH, METRICS
from parity_models.serving.descriptors import allow_descriptors
from parity_models.serving.http.http_server import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.routes import Page
from parity_models.serving.rest.messages import Handler
from parity_models.serving.rest.service import Rest
from parity_models.serving.watched import Reread, watch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from parity_models.serving.grpc.grpc_server import GrpcServer
    from parity_models.serving.tracing import Tracing

_SCRAPERS = 32
"""Connections to the port for metrics at a time."""


class Listeners:
    """The protocols in front of `models`, as `options` say; opened and closed once.

    `metrics` count connections, and requests that are for no model. `read_metrics`, if given,
    answers /metrics in their place. `page` shows what the server does. `tracing` makes spans of
    requests. Raises UserError for files that cannot be used.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        options: ServeOptions,
        *,
        read_metrics: Handler | None = None,
        page: Page | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._options = options
        self._read_metrics = read_metrics
        self._page = page
        self._tracing = tracing
        self._budget = ByteBudget(options.limits.max_in_flight)
        self._certificate = options.access.certificate()
        self._tokens = options.access.read_tokens()
        self._https = self._http_servers()
        metrics.connections.set_function(lambda: sum(each.connections for each in self._https))
        metrics.bytes_in_flight.set_function(lambda: self._budget.held)
        if self._certificate is not None:
            metrics.certificate_expires(self._certificate.ends)
        self._grpc: GrpcServer | None = None
        self.grpc_url: str | None = None
        self.metrics_url: str | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once HTTP is open."""
        return url_of(self._socket, "http" if self._certificate is None else "https")

    @property
    def takes_tokens(self) -> bool:
        """Must clients show a token?"""
        return self._tokens is not None

    def open_http(self, instances: int) -> None:
        """Bind, if there is a port, and take requests over HTTP; leave descriptors for `instances`.

        Raises UserError if it cannot listen where it should.
        """
        options, limits = self._options, self._options.limits
        calls = 0 if options.grpc_port is None else limits.max_rpcs
        calls += 0 if options.access.metrics_port is None else _SCRAPERS
        allow_descriptors(limits.max_connections + calls, instances)
        if options.port is not None:
            self._socket = listen(options.host, options.port)
            self._https[0].start(self._socket)

    async def open_others(self) -> None:
        """Open the port for metrics, and gRPC's, if there are such. Raises UserError likewise."""
        options = self._options
        if options.access.metrics_port is not None:
            of_metrics = listen(options.host, options.access.metrics_port)
            self._https[-1].start(of_metrics)
            self.metrics_url = url_of(of_metrics) + METRICS
        if options.grpc_port is not None:
            await self._start_grpc(options.grpc_port)
        self._watch()

    def drain(self) -> None:
        """From now on, every answer over HTTP is the last of its connection."""
        for each in self._https:
            each.drain()

    async def close(self) -> None:
        """Close what is open, after the answers that are under way, and send all spans."""
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

    def rest(self, page: Page | None = None) -> Rest:
        """The protocol over HTTP, with this page beside it, for whatever carries it."""
        apart = self._options.access.metrics_port is not None
        return Rest(
            self._models,
            self._metrics,
            self._options.limits,
            self._budget,
            self._read_metrics,
            tokens=self._tokens,
            has=METRICS.__ne__ if apart else _all,
            pages=None if page is None else page.routes(),
            open_paths=() if page is None else page.open_paths,
            tracing=self._tracing,
        )

    def _http_servers(self) -> list[HttpServer]:
        """The server, if it is to listen, and the one for metrics, if they have a port."""
        certificate, servers = self._certificate, []
        if self._options.port is not None:
            tls = None if certificate is None else lambda: certificate.context
            servers.append(HttpServer(self.rest(self._page), self._metrics, tls))
        if self._options.access.metrics_port is not None:
            has = (METRICS, *HEALTH).__contains__
            few = replace(self._options.limits, max_connections=_SCRAPERS)
            scraped = Rest(
                self._models, self._metrics, few, self._budget, self._read_metrics, has=has
            )
            servers.append(HttpServer(scraped, self._metrics))
        return servers

    async def _start_grpc(self, port: int) -> None:
        # Only now: whoever speaks HTTP alone need not wait for gRPC.
        from parity_models.serving.grpc.grpc_server import GrpcServer

        self._grpc = GrpcServer(
            self._models,
            self._metrics,
            self._options.limits,
            self._budget,
            tokens=self._tokens,
            tracing=self._tracing,
        )
        tls = None if self._certificate is None else self._certificate.grpc_credentials()
        self.grpc_url = await self._grpc.start(self._options.host, port, tls)

    def _watch(self) -> None:
        """Read files again that change, from now on."""
        watched: list[Reread] = [
            each for each in (self._certificate, self._tokens) if each is not None
        ]
        if watched:
            self._watching = asyncio.create_task(watch(*watched))


def tracing_to(provider: "TracerProvider | None") -> "Tracing | None":
    """What makes spans for the provider, if there is one."""
    if provider is None:
        return None
    # Only now: whoever wants no spans need not have what makes them.
    from parity_models.serving.tracing import Tracing

    return Tracing(provider)


def _all(path: str) -> bool:
    return True


class ListeningServer(ABC):
    """A server that is reached through its `_listeners`, and runs while its context lasts."""

    _listeners: Listeners
    watched: bool
    """Whether it has a live page."""

    @property
    def takes_tokens(self) -> bool:
        """Must clients show a token?"""
        return self._listeners.takes_tokens

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once the server is started, if it
        listens."""
        return self._listeners.url

    @property
    def grpc_url(self) -> str | None:
        """Likewise, of gRPC, if there is such."""
        return self._listeners.grpc_url

    @property
    def metrics_url(self) -> str | None:
        """Likewise, of the metrics, if they have a port of their own."""
        return self._listeners.metrics_url

    @abstractmethod
    async def start(self) -> None:
        """Bind and start; returns when the server is ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Refuse new requests, answer those in flight, and stop."""

    async def _open(self, instances: int, start: Callable[[], Awaitable[None]]) -> None:
        """Bind, leaving descriptors for `instances`, and `start` what is served; nothing is left
        open if that fails."""
        self._listeners.open_http(instances)
        try:
            await self._listeners.open_others()
            await start()
        except BaseException:
            await self._close()
            raise

    @abstractmethod
    async def _close(self) -> None:
        """Close the listeners, and end what is served if it has not been ended."""

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
