"""The engine of a server whose instances run on a Ray cluster: one of a repository's versions.

Its instances are a Serve application of their own, which no proxy of Ray's leads to: the server
itself speaks with clients. `connected` is around the server's whole life.
"""

import asyncio
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Event
from typing import Any, ClassVar

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import ProxyLocation

from parity_models.errors import OptionError, ServingError, UserError
from parity_models.models.bundle import Bundle
from parity_models.options import Value, options_of
from parity_models.serving.engine import Engine, EngineListener, Parts
from parity_models.serving.plan import model_files
from parity_models.serving.ray.app import instances_app, pools_for, roster_app
from parity_models.serving.ray.cluster import (
    SERVE_API,
    connect,
    delete,
    deploy,
    serve_runs,
    stop_serve,
    wait_for,
)
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.ray.deployments import address, deployment_name, outputs_of
from parity_models.serving.ray.frames import largest_frame
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.ray.room import Room
from parity_models.serving.ray.roster import FrontendReport, Replica
from parity_models.serving.ray.store import BundleFiles, put_bundle
from parity_models.serving.worker.socket_key import SocketKey

_PER_INSTANCE = ("cpus_per_instance", "resources_per_instance")
"""Options that each model may have otherwise."""

_OF_SERVER = ("address", *_PER_INSTANCE)
"""Options that say something where the server is no replica and nothing is scaled."""


def _free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


_ROOM = Room(_free_cpus)
"""On the cluster that this process is connected to."""


@contextmanager
def connected(cluster: ClusterOptions) -> Iterator[None]:
    """Inside, a server's engines have the cluster at its address, or a new one on this machine.

    At the end, Serve is stopped unless it ran before or others use it, and the cluster if it is a
    new one. Raises UserError for a cluster that cannot be reached.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    connect(cluster.address, os.cpu_count() or 1)
    try:
        ran_before = serve_runs()
        serve.start(ProxyLocation.Disabled)
        try:
            yield
        finally:
            if not ran_before:
                stop_serve()
    finally:
        ray.shutdown()


class ClusterEngine(RayEngine):
    """Replicas on the cluster that this process is connected to, for this server alone.

    They are deployed at the start and deleted at the end.
    """

    name = "ray"
    takes_several = True
    takes_faults = False
    serves_itself = False
    refuses: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def for_several(cls) -> type[Engine]:
        return cls

    @classmethod
    def around(cls, options: Any) -> AbstractContextManager[None]:
        return connected(options)

    @classmethod
    def check_several(cls, options: Any) -> None:
        given = [
            each.name
            for each in options_of(ClusterOptions)
            if each.name not in _OF_SERVER and getattr(options, each.name) != each.default
        ]
        if given:
            raise OptionError(
                lambda spell: (
                    f"leave {spell(given[0])} out with a repository on Ray: the server itself is "
                    "the one frontend, and each version has the instances that it is given"
                )
            )
        _check_resources(options.address, options.resources_per_instance)

    @classmethod
    def options_of_model(
        cls,
        given: Mapping[str, Value],
        own: Mapping[str, Value],
        bundle: Bundle,
        model: str,
        version: str,
    ) -> Mapping[str, Value]:
        for each in own:
            if each not in _PER_INSTANCE:
                raise UserError(f"{each.replace('_', '-')} is for all models; leave it out here")
        values = {**given, **own}
        _check_resources(values.get("address"), values.get("resources_per_instance"))
        return values

    @classmethod
    def build(cls, options: Any, parts: Parts) -> Engine:
        return cls(options, parts)

    def __init__(self, cluster: ClusterOptions, parts: Parts) -> None:
        self._cluster = cluster
        self._parts = parts
        self._files = BundleFiles.of(parts.bundle)
        self._app = f"parm-{_name(parts.bundle)}-{uuid.uuid4().hex[:8]}"
        self._handle: Any = None
        self._ended = Event()
        key = SocketKey.new()
        super().__init__(
            self._ask_roster,
            self._app,
            deployment_name(self._files, key),
            address(),
            key,
            max_frame=largest_frame(outputs_of(parts.bundle), parts.max_batch),
            unit_timeout=parts.unit_timeout,
            metrics=parts.metrics,
        )

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        deploying = asyncio.ensure_future(asyncio.to_thread(self._deploy, roles))
        try:
            await asyncio.shield(deploying)
            await super().start(roles, listener)
        except BaseException:
            self._ended.set()
            await self._delete()
            await asyncio.wait((deploying,))
            await self._delete()
            raise

    async def stop(self) -> None:
        await super().stop()
        await self._delete()

    async def _ask_roster(self, report: FrontendReport) -> tuple[Replica, ...]:
        replicas: tuple[Replica, ...] = await self._handle.frontend_seen.remote(report)
        return replicas

    def _deploy(self, roles: Sequence[frozenset[str]]) -> None:
        """Raises ServingError if there is no room for the instances, or they do not start."""
        cpus = len(roles) * self._reserved.cpus_per_instance
        with _ROOM.promised(cpus, self._ended):
            put_bundle(self._parts.bundle)
            with SERVE_API:
                if self._ended.is_set():  # so that nothing is deployed after it was deleted
                    raise ServingError("its start was ended")
                deploy(self._application(roles), self._app, None)
            wait_for(self._app, self._ended)
        with SERVE_API:
            self._handle = serve.get_deployment_handle("Roster", self._app)

    def _application(self, roles: Sequence[frozenset[str]]) -> Application:
        roster = roster_app(self._files)
        stored = model_files(self._parts.bundle)
        apps: list[Application] = []
        for pool in pools_for(Counter(roles)):
            models = {role: stored[role] for role in sorted(pool.roles)}
            apps.append(
                instances_app(
                    roster, self._files, models, pool, self._reserved, self._key, beside=apps
                )
            )
        return apps[-1]

    @property
    def _reserved(self) -> ClusterOptions:
        """What replicas reserve: nothing of a cluster that is this machine alone, where as many run
        as are asked for."""
        if self._cluster.address is not None:
            return self._cluster
        return ClusterOptions(cpus_per_instance=0)

    async def _delete(self) -> None:
        with suppress(Exception):  # where the cluster is gone, so is the application
            await asyncio.to_thread(delete, self._app)


def _check_resources(address: Value | None, resources: Value | None) -> None:
    if resources and address is None:
        raise OptionError(
            lambda spell: (
                f"{spell('resources_per_instance')} needs {spell('address')} beside it: a cluster "
                "that is started here has no such resources"
            )
        )


def _name(bundle: Bundle) -> str:
    """What a model's version is called in a name of Ray's."""
    model, version = bundle.path.parent.name, bundle.path.name
    return re.sub(r"[^A-Za-z0-9.]", "-", f"{model}-{version}")
