"""The engine on Ray: instances are actors on the nodes of a cluster.

The server itself is the driver of a Ray job: with it, its actors end. Units and their outputs go
through Ray's actor calls. Ray places actors on nodes; which of them to start, restart and give up
is decided here, as for the processes of the local engine.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from parity_models.errors import ParityModelsError, UserError, install
from parity_models.options import Option
from parity_models.serving.engine import Engine, Parts
from parity_models.serving.worker.supervised import OnReport, SupervisedEngine

if TYPE_CHECKING:
    from parity_models.serving.ray.cluster import ActorInstance, StoredModel

START_TIMEOUT = 300.0
"""Seconds an instance has to start: images and models may have to reach new nodes."""

HEARTBEAT_TIMEOUT = 5.0
"""Seconds without an answer before an instance, or its node, is considered dead."""


class RayEngine(SupervisedEngine["ActorInstance"]):
    """Runs a bundle's models in actors on a Ray cluster. See SupervisedEngine for the rest."""

    name = "ray"
    heartbeat_timeout = HEARTBEAT_TIMEOUT
    join_timeout = START_TIMEOUT
    tolerance = 1e-4  # nodes may have processors of different kinds

    @dataclass(frozen=True, kw_only=True)
    class Options(Engine.Options):
        """The cluster, and what instances reserve on it."""

        address: Annotated[
            str | None,
            Option(
                "The cluster, as HOST:PORT of its head node, or auto on a node of it; by default "
                "one is started on this machine.",
                metavar="ADDRESS",
            ),
        ] = None
        cpus_per_instance: Annotated[
            float, Option("CPUs that Ray reserves for an instance.", at_least=0)
        ] = 1.0

    def __init__(self, options: Options, parts: Parts) -> None:
        super().__init__(options, parts)
        self._connection: Any = None
        self._stored: Mapping[str, StoredModel] = {}

    async def _prepare(self, roles: Sequence[frozenset[str]]) -> None:
        # Only now: without this engine, Ray need not be installed.
        try:
            from parity_models.serving.ray.cluster import Connection
        except ImportError as error:
            raise UserError(f"the engine ray needs Ray; {install('ray')}") from error

        connecting = asyncio.ensure_future(asyncio.to_thread(Connection, self._options.address))
        try:
            self._connection = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with suppress(ParityModelsError):
                (await connecting).close()
            raise
        self._cpus = self._options.cpus_per_instance if self._options.address else 0.0
        used = {role: self._parts.models[role] for role in sorted(frozenset[str]().union(*roles))}
        await self._connection.check_room(len(roles) * self._cpus)
        self._stored = await asyncio.to_thread(self._connection.store, used)

    def _make(
        self,
        number: int,
        name: str,
        roles: frozenset[str],
        on_report: OnReport,
    ) -> "ActorInstance":
        from parity_models.serving.ray.cluster import ActorInstance

        models = {role: self._stored[role] for role in sorted(roles)}
        return ActorInstance(number, name, models, self._cpus, on_report)

    async def _release(self) -> None:
        self._stored = {}
        if self._connection is not None:
            await asyncio.to_thread(self._connection.close)
