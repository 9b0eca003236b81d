"""A server of a repository: its models, and the protocols in front."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from parity_models.errors import OptionError, UserError
from parity_models.serving.listeners import Listeners, ListeningServer, tracing_to
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.routes import Page
from parity_models.serving.repository.managed import Settings
from parity_models.serving.repository.repository import Repository, check_engine
from parity_models.serving.repository.shown import ModelsSampler, ShownModels
from parity_models.serving.rest.messages import Request, Response, metrics_response

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_INSTANCES = 64
"""Instances, of all models together, that there are descriptors for at least."""


class RepositoryServer(ListeningServer):
    """Serves the bundles in `folder`, NAME/VERSION, over the Open Inference Protocol.

    `options` are those of the server, and of each model as far as `settings` do not say otherwise.
    `traces` gets the spans of requests.
    Raises UserError for options that are for one bundle, and files that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        settings: Settings,
        traces: "TracerProvider | None" = None,
    ) -> None:
        shared = settings.sharing.shared_instances
        check_engine(options.engine, shares=shared is not None)
        if shared is not None and options.faults is not None:
            raise OptionError(
                lambda spell: (
                    f"faults are for instances that stay; leave out {spell('shared_instances')}"
                )
            )
        if options.name is not None:
            raise OptionError(
                lambda spell: f"{spell('name')} is for a server of one bundle; leave it out"
            )
        if options.placements:
            raise UserError("placements are for a server of one bundle; leave them out")
        self._options = options
        self._shared_instances = shared or 0
        tracing = tracing_to(traces)
        self.repository = Repository(folder, replace(settings, tracing=tracing))
        page = None
        self.feed: Feed | None = None
        if options.ui:
            self.feed = Feed(ModelsSampler(self.repository.views, self.repository.history))
            page = Page(folder.resolve().name, ShownModels(self.feed, self.repository.feed))
        self._listeners = Listeners(
            self.repository,
            self.repository.metrics.server,
            options,
            read_metrics=self._read_metrics,
            page=page,
            tracing=tracing,
        )

    async def start(self) -> None:
        """Bind, and load all models; returns when all are loaded that can be.

        Raises UserError if it cannot listen where it should.
        """
        await self._open(max(_INSTANCES, 2 * self._shared_instances), self.repository.start)

    async def stop(self) -> None:
        """Be ready no more; after the options' `shutdown_delay`, refuse new requests, answer those
        in flight, and end all models. Where it is cancelled, it does not wait for answers."""
        self.repository.retire()
        try:
            await asyncio.sleep(self._options.shutdown_delay)
            self._end_feeds()
            self._listeners.drain()
            await self.repository.drain()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._end_feeds()
        await self.repository.close()
        await self._listeners.close()

    def _end_feeds(self) -> None:
        if self.feed is not None:
            self.feed.close()
        self.repository.end_feeds()

    async def _read_metrics(self, request: Request) -> Response:
        return metrics_response(request, self.repository.metrics)
