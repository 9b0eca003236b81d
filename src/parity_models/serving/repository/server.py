"""A server of a repository: its models, and the protocols in front."""

import asyncio
from pathlib import Path

from parity_models.errors import UserError
from parity_models.serving.doors import AtDoors, Doors
from parity_models.serving.options import ServeOptions
from parity_models.serving.repository.managed import Settings
from parity_models.serving.repository.repository import Repository, check_engine
from parity_models.serving.rest.messages import Request, Response, metrics_response

_INSTANCES = 64
"""Instances, of all models together, that there are descriptors for at least."""


class RepositoryServer(AtDoors):
    """Serves the bundles in `folder`, NAME/VERSION, over the Open Inference Protocol.

    `options` are those of the server, and of each model as far as `settings` do not say otherwise.
    Raises UserError for options that are for one bundle, and files that cannot be used.
    """

    def __init__(self, folder: Path, options: ServeOptions, settings: Settings) -> None:
        check_engine(options.engine)
        for option, given in {
            "name": options.name,
            "ui": options.ui,
            "placements": options.placements,
        }.items():
            if given:
                raise UserError(f"{option} is for a server of one bundle; leave it out")
        self._options = options
        self.repository = Repository(folder, settings)
        metrics = self.repository.metrics.server
        self._doors = Doors(self.repository, metrics, options, read_metrics=self._read_metrics)

    async def start(self) -> None:
        """Bind, and load all models; returns when all are loaded that can be.

        Raises UserError if it cannot listen where it should.
        """
        self._doors.open_http(_INSTANCES)
        try:
            await self._doors.open_others()
            await self.repository.start()
        except BaseException:
            await self.repository.close()
            await self._doors.close()
            raise

    async def stop(self) -> None:
        """Be ready no more; after the options' `shutdown_delay`, refuse new requests, answer those
        in flight, and end all models. Where it is cancelled, it does not wait for answers."""
        self.repository.retire()
        try:
            await asyncio.sleep(self._options.shutdown_delay)
            self._doors.drain()
            await self.repository.drain()
        finally:
            await self.repository.close()
            await self._doors.close()

    async def _read_metrics(self, request: Request) -> Response:
        return metrics_response(request, self.repository.metrics)
