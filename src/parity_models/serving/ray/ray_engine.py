"""The engine on Ray: instances are actors on the nodes of a cluster.

The server itself is the driver of a Ray job, whose actors end with it. Units and their outputs go
through Ray's actor calls. Ray places actors on nodes; this engine decides which to start, restart
and give up, as the local engine does for processes.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import UserError, install
from parity_models.options import option
from parity_models.serving.engine import Engine
from parity_models.serving.worker import wire
from parity_models.serving.worker.supervised import SupervisedEngine, assign

START_TIMEOUT = 300.0
"""Seconds an instance has to start: images and models may have to reach new nodes."""

HEARTBEAT_TIMEOUT = 5.0
"""Seconds without an answer before an instance, or its node, is considered dead."""


class RayEngine(SupervisedEngine):
    """Runs a bundle's models in actors on a Ray cluster. See SupervisedEngine for the rest."""

    name = "ray"
    heartbeat_timeout = HEARTBEAT_TIMEOUT
    join_timeout = START_TIMEOUT
    tolerance = 1e-4  # nodes may have processors of different kinds

    @dataclass(frozen=True, kw_only=True)
    class Options(Engine.Options):
        """The cluster, and what instances reserve on it."""

        address: str | None = option(
            None,
            "The cluster, as HOST:PORT of its head node, or auto on a node of it; by default "
            "one is started on this machine.",
            metavar="ADDRESS",
        )
        cpus_per_instance: float = option(1.0, "CPUs that Ray reserves for an instance.", ge=0)

        @property
        def reserved_cpus(self) -> float:
            """The CPUs reserved for each instance; 0 on a cluster of this engine's own."""
            return self.cpus_per_instance if self.address else 0.0

    def _prepare(
        self, models: Mapping[str, PinnedModel], instances: int
    ) -> Mapping[str, wire.AssignedModel]:
        # Only now: without this engine, Ray need not be installed.
        try:
            from parity_models.serving.ray.cluster import ActorInstance, Connection
        except ImportError as error:
            raise UserError(f"the engine ray needs Ray; {install('ray')}") from error

        self.instance_kind = ActorInstance
        connection = Connection(self.options.address)
        self._resources.push_async_callback(asyncio.to_thread, connection.close)
        connection.check_room(instances * self.options.reserved_cpus)
        return assign(models, connection.store)
