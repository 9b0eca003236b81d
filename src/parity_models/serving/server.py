"""A server: a bundle's models on an engine, a frontend over them, and protocols in front."""

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from parity_models.models.bundle import Bundle
from parity_models.serving.engine import Engine
from parity_models.serving.frontend import Frontend
from parity_models.serving.hosted import Hosted
from parity_models.serving.listeners import Listeners, ListeningServer, tracing_to
from parity_models.serving.models import OneModel
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.routes import Page
from parity_models.serving.rest.asgi import AsgiApp

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["ServeOptions", "Server"]


class Server(ListeningServer):
    """Serves a bundle over the Open Inference Protocol, with the instances of an engine.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url; server.grpc_url and server.metrics_url, if there are such

    `traces` gets the spans of requests. Raises UserError for options that do not fit the bundle,
    and files that cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: ServeOptions | None = None,
        traces: "TracerProvider | None" = None,
    ) -> None:
        options = options or ServeOptions()
        self._options = options
        tracing = tracing_to(traces)
        self._hosted = hosted = Hosted(bundle, options, tracing=tracing)
        self.policy, self.roles, self.model = hosted.policy, hosted.roles, hosted.model
        self.notes = hosted.notes
        self._engine, self._frontend = hosted.engine, hosted.frontend
        self.watched = options.ui
        page = None
        if self.watched:
            page = Page(self.model.name, lambda asked: hosted.feed, repository=False)
        models = OneModel(self._frontend, self.model)
        self._listeners = Listeners(
            models,
            hosted.metrics,
            options,
            page=page,
            tracing=tracing,
        )

    @property
    def listens(self) -> bool:
        """Does it listen on a port for HTTP?"""
        return self._options.port is not None

    def app(self) -> AsgiApp:
        """The protocol as an ASGI application, to mount into another one. It answers while this
        server runs."""
        return AsgiApp(self._listeners.rest())

    @property
    def registry(self) -> CollectorRegistry:
        """What it counts, for callers in this process."""
        return self._hosted.metrics.registry

    @property
    def engine(self) -> Engine:
        """What runs the models."""
        return self._engine

    @property
    def frontend(self) -> Frontend:
        """What answers queries, for callers in this process."""
        return self._frontend

    async def start(self) -> None:
        """Bind, and start all instances; returns when the server is ready.

        It is live, but not ready, before. Raises UserError if it cannot listen where it should,
        and ServingError, with nothing left running, if an instance does not start.
        """
        await self._open(len(self.roles), self._hosted.start)

    async def stop(self) -> None:
        """Be ready no more; after the options' `shutdown_delay`, refuse new requests, answer those
        in flight, and stop all instances.

        Where it is cancelled, it stops without waiting for answers.
        """
        self._frontend.retire()
        try:
            await asyncio.sleep(self._options.shutdown_delay)
            self._hosted.close_feed()
            self._listeners.drain()
            await self._hosted.drain()
        finally:
            await self._hosted.stop()
            await self._close()

    def begin_faults(self) -> None:
        """Let the time of the options' fault plan begin now; without one, nothing happens."""
        self._hosted.begin_faults()

    def busy_seconds(self) -> float:
        """How long instances have been busy, all together."""
        return sum(self._frontend.busy_seconds().values())

    async def _close(self) -> None:
        self._hosted.close_feed()
        await self._listeners.close()
