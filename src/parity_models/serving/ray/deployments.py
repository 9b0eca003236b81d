"""The deployments of the application: roster, instances, frontends.

Queries go from a client through Ray's proxy to a replica of Frontends, and from there straight to
the worker in a replica of Instances. What goes through Ray's handles is only reports to Roster.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import ray
from google.protobuf.message import Message
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from parity_models.faults import FaultPlan, WorkerFaults
from parity_models.models.bundle import Bundle, ModelFile
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import Layout
from parity_models.serving.frontend import Frontend
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.golden import golden_of
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import OneModel
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan, model_files
from parity_models.serving.ray.frames import largest_frame
from parity_models.serving.ray.grpc import RayGrpc
from parity_models.serving.ray.ray_engine import PATIENCE, RayEngine, holder_of
from parity_models.serving.ray.roster import (
    INTERVAL,
    FrontendReport,
    InstanceReport,
    Replica,
    Roster,
)
from parity_models.serving.ray.store import BundleFiles
from parity_models.serving.ray.summed_metrics import Together
from parity_models.serving.rest.asgi import AsgiApp, rest_app
from parity_models.serving.rest.messages import Request, Response, metrics_response
from parity_models.serving.served_model import ServedModel
from parity_models.serving.worker.models import warm_model
from parity_models.serving.worker.socket_key import SocketKey
from parity_models.serving.worker.sockets import WorkerSockets
from parity_models.serving.worker.worker import Worker

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

GOODBYE = 0.2
"""Seconds that the roster has for the last report of an instance that nobody has leased."""

STOP_PATIENCE = 20.0
"""Seconds that a replica that is to stop has for its unit."""

_log = logging.getLogger(__name__)


class RosterDeployment:
    """The roster, as one replica that frontends and instances report to."""

    def __init__(self, files: BundleFiles) -> None:
        self._files = files
        # Time is counted, not read off the clock: what has kept this replica from running has
        # kept it from hearing reports, too.
        self._now = 0.0
        self._roster = Roster(self._now)
        self._tasks = [
            asyncio.create_task(_every(INTERVAL / 2, self._tick)),
            asyncio.create_task(_every(10.0, files.touch)),
        ]

    async def instance_seen(self, report: InstanceReport) -> None:
        self._roster.instance_seen(self._now, report)

    async def frontend_seen(self, report: FrontendReport) -> tuple[Replica, ...]:
        return self._roster.frontend_seen(self._now, report)

    async def _tick(self) -> None:
        self._now += INTERVAL / 2


class Instances:
    """One instance a replica: a worker with `models`, by role, and the deployment's `key`.

    As a target of autoscaling it reports its utilisation. `faults` are suffered by the instance
    whose number in the plan is `first` more than the replica's rank, from its start on. `beside`
    are further pools of an application that has no frontends.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits constructors
        self,
        roster: DeploymentHandle[Any],
        files: BundleFiles,
        models: Mapping[str, ModelFile],
        key: SocketKey,
        faults: FaultPlan | None,
        first: int,
        beside: Sequence[DeploymentHandle[Any]],
    ) -> None:
        warm = {
            role: warm_model(
                OnnxModel(await files.content(model), signature=model.signature), model.file
            )
            for role, model in models.items()
        }
        endpoint = f"tcp://{address()}:*"
        context = serve.get_replica_context()
        max_frame = largest_frame(model.signature.largest.input for model in warm.values())
        sockets = WorkerSockets(endpoint, endpoint, key=key, max_frame=max_frame)
        self._worker = Worker(warm, sockets, faults=_faults(faults, first + context.rank.rank))
        self._replica = Replica(
            key=f"{context.deployment}-{context.replica_id.unique_id}",
            bundle=deployment_name(files, key),
            roles=frozenset(models),
            node=ray.get_runtime_context().get_node_id(),
            units=sockets.units,
            control=sockets.control,
        )
        self._roster = roster
        self._leaving = False
        self._looked = (time.monotonic(), 0.0)
        self._thread = Thread(target=self._worker.serve, daemon=True)
        self._thread.start()
        self._reports = asyncio.create_task(_every(INTERVAL, self._report))

    async def check_health(self) -> None:
        if not (self._thread.is_alive() and self._worker.attends):
            raise RuntimeError("the worker has ended")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The share of the time since the last call for which the worker has had units."""
        (then, before), now = self._looked, (time.monotonic(), self._worker.busy)
        self._looked = now
        return {"utilisation": (now[1] - before) / max(now[0] - then, 1e-3)}

    async def __del__(self) -> None:
        """Let the frontend find other work for itself: it releases the worker after its unit."""
        self._leaving = True
        await say_goodbye(self._report, lambda: self._worker.lease is not None)
        await asyncio.to_thread(self._worker.leave, STOP_PATIENCE)
        self._reports.cancel()

    async def _report(self) -> None:
        lease = self._worker.lease
        holder = None if lease is None else holder_of(lease.instance)
        await self._roster.instance_seen.remote(
            InstanceReport(self._replica, holder, self._leaving)
        )


async def say_goodbye(report: Callable[[], Awaitable[None]], leased: Callable[[], bool]) -> None:
    """Report for the last time, that the roster grants the instance to nobody from now on.

    Returns after PATIENCE seconds at the latest, and after GOODBYE where nobody has it leased: an
    application that ends as a whole has no roster any more, and that needs no report.
    """
    reporting = asyncio.ensure_future(report())
    for patience in (GOODBYE, PATIENCE - GOODBYE):
        await asyncio.wait((reporting,), timeout=patience)
        if reporting.done() or not leased():
            break
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)


class Frontends:
    """One frontend a replica, which speaks the Open Inference Protocol: by ASGI, and in the methods
    that Serve's gRPC proxy calls.

    `roles` are those of all instances there should be, of which it starts with its share of
    `frontends`. With `traces` it sends spans of requests. The deployments of `pools` are those of
    the instances.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits constructors
        self,
        roster: DeploymentHandle[Any],
        pools: Sequence[DeploymentHandle[Any]],
        files: BundleFiles,
        key: SocketKey,
        options: ServeOptions,
        roles: Sequence[frozenset[str]],
        frontends: int,
        traces: bool,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parm-")
        bundle = await _bundle(files, Path(self._folder.name))
        self._metrics = Metrics(bundle.digest)
        plan = Plan(bundle, options)
        for note in plan.notes:
            _log.warning(note)
        self._model = plan.model
        self._limits = options.limits
        engine = RayEngine(
            roster.frontend_seen.remote,
            serve.get_replica_context().replica_id.unique_id,
            deployment_name(files, key),
            address(),
            key,
            max_frame=largest_frame(outputs_of(bundle), plan.max_batch),
            unit_timeout=options.unit_timeout,
            metrics=self._metrics,
        )
        models = {role: bundle.pinned(file) for role, file in model_files(bundle).items()}
        golden = await asyncio.to_thread(golden_of, bundle, models, roles)
        self._frontend = plan.frontend(engine, self._metrics, golden)
        self._tracing = _tracing(self._frontend, self._model) if traces else None
        self._grpc = RayGrpc(
            self._frontend, self._model, self._metrics, self._limits.max_body, self._tracing
        )
        await self._frontend.start(share(roles, frontends))
        freeze_modules()

    def __serve_build_asgi_app__(self) -> AsgiApp:
        models = OneModel(self._frontend, self._model)
        return rest_app(models, self._metrics, self._limits, self._all_metrics, self._tracing)

    async def ServerLive(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ServerLive", request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ServerReady", request, grpc_context)

    async def ModelReady(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("ModelInfer", request, grpc_context)

    async def RepositoryIndex(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("RepositoryIndex", request, grpc_context)

    async def RepositoryModelLoad(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("RepositoryModelLoad", request, grpc_context)

    async def RepositoryModelUnload(self, request: bytes, grpc_context: Any) -> Message:
        return await self._grpc.answer("RepositoryModelUnload", request, grpc_context)

    async def metrics(self) -> list[Metric]:
        """This frontend's own."""
        return list(self._metrics.registry.collect())

    async def _all_metrics(self, request: Request) -> Response:
        """Those of all frontends together: which of them is asked is up to Ray's proxy."""
        context = serve.get_replica_context()
        frontends = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = await frontends.broadcast("metrics").results_async(return_exceptions=True)
        together = Together([answer for answer in answers if isinstance(answer, list)])
        return metrics_response(request, together)

    async def __del__(self) -> None:
        await self._frontend.drain()
        await self._frontend.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._folder.cleanup()


def _tracing(frontend: Frontend, model: ServedModel) -> "Tracing":
    """Spans of what a frontend does, which are sent as its environment says."""
    # Only now: whoever wants no spans need not have what makes them.
    from parity_models.serving.tracing import Tracing, exporting

    tracing = Tracing(exporting())
    tracing.observe(frontend, model)
    return tracing


def deployment_name(files: BundleFiles, key: SocketKey) -> str:
    """What frontends and instances have in common that can work together: a bundle and a key."""
    return f"{files.digest}-{key.name}"


def share(roles: Sequence[frozenset[str]], frontends: int) -> list[frozenset[str]]:
    """What each of some frontends has at least of these instances, once they are all there."""
    return [
        each
        for kind in dict.fromkeys(roles)
        for each in [kind] * max(1, roles.count(kind) // frontends)
    ]


async def _every(interval: float, act: Callable[[], Awaitable[None]]) -> None:
    """Act now and again, whatever comes of it."""
    failing = False
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                await act()
            failing = False
        except Exception as error:
            if not failing:
                _log.warning("%s failed, and is tried again: %r", act.__qualname__, error)
            failing = True
        await asyncio.sleep(interval)


async def _bundle(files: BundleFiles, folder: Path) -> Bundle:
    """What a frontend needs of the bundle, in a folder."""
    bundle = Bundle(folder, await files.manifest(), files.digest, files.allowed)
    manifest = bundle.manifest
    envelopes = () if manifest.envelope is None else (manifest.envelope,)
    models = model_files(bundle).values()
    for stored in (*models, *manifest.coders.values(), *envelopes):
        (folder / stored.file).write_bytes(await files.content(stored))
    return bundle


def _faults(plan: FaultPlan | None, number: int) -> tuple[float, WorkerFaults] | None:
    return None if plan is None else (time.monotonic(), WorkerFaults(plan, number))


def address() -> str:
    """This node's IP address, as other nodes reach it."""
    return str(ray.util.get_node_ip_address())


def outputs_of(bundle: Bundle) -> list[Layout]:
    """The largest output of each of a bundle's models."""
    manifest = bundle.manifest
    models = (manifest.deployed, *manifest.parity, *manifest.backups)
    return [model.signature.largest.output for model in models]
