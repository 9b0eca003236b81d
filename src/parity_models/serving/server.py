"""A server: a bundle's models on an engine, a frontend over them, and protocols in front."""

import asyncio
from types import TracebackType
from typing import Self

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.scheduling import DEPLOYED
from parity_models.serving.descriptors import allow_descriptors
from parity_models.serving.frontend import Frontend
from parity_models.serving.golden import Golden, golden_of
from parity_models.serving.grpc.server import GrpcServer
from parity_models.serving.http.server import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget
from parity_models.serving.local.engine import LocalEngine
from parity_models.serving.metrics import Metrics
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan, model_files
from parity_models.serving.remote.engine import RemoteEngine
from parity_models.serving.rest import Rest

__all__ = ["ServeOptions", "Server"]


class Server:
    """Serves a bundle over the Open Inference Protocol with local instances, or over a fleet.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url; server.grpc_url, if there is one

    Raises UserError for options that do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions | None = None) -> None:
        options = options or ServeOptions()
        plan = Plan(bundle, options)
        self.policy, self.works, self.model = plan.choice.name, plan.works, plan.model
        if options.faults is not None:
            options.faults.check(len(self.works))
        if options.placements and len(options.placements) != len(self.works):
            raise UserError(
                f"there are {len(options.placements)} placements for {len(self.works)} instances"
            )
        deployed = sum(DEPLOYED in each for each in self.works)
        if options.min_ready > deployed:
            raise UserError(
                f"min_ready is {options.min_ready}, but there are {deployed} instances of the "
                "deployed model: the server would never be ready"
            )
        self._options = options
        self._metrics = metrics = Metrics(bundle.digest)
        models = {work: bundle.pinned(model) for work, model in model_files(bundle).items()}
        self._bundle, self._models = bundle, models
        self._golden: dict[str, Golden] = {}
        self._engine: LocalEngine | RemoteEngine = (
            LocalEngine(
                models,
                placements=options.placements,
                unit_timeout=options.unit_timeout,
                metrics=metrics,
                allows_faults=options.faults is not None,
            )
            if options.fleet is None
            else RemoteEngine(
                models,
                options.fleet,
                metrics,
                max_batch=options.max_batch,
                unit_timeout=options.unit_timeout,
            )
        )
        self._frontend = plan.frontend(self._engine, metrics, self._golden)
        self._budget = ByteBudget(options.limits.max_in_flight)
        rest = Rest(self._frontend, self.model, metrics, options.limits, self._budget)
        self._http = HttpServer(rest, metrics)
        self._grpc: GrpcServer | None = None
        self.grpc_url: str | None = None

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once the server is started."""
        return url_of(self._socket)

    @property
    def frontend(self) -> Frontend:
        """What answers queries, for callers in this process."""
        return self._frontend

    async def start(self) -> None:
        """Bind, and start all instances; returns when the server is ready.

        It is live, but not ready, before. Raises UserError if it cannot listen where it should,
        and ServingError, with nothing left running, if an instance does not start.
        """
        host, port = self._options.host, self._options.port
        limits = self._options.limits
        calls = 0 if self._options.grpc_port is None else limits.max_rpcs
        allow_descriptors(limits.max_connections + calls, len(self.works))
        try:
            self._socket = listen(host, port)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another host or "
                "port (port 0 takes any that is free)"
            ) from error
        self._http.start(self._socket)
        try:
            if self._options.grpc_port is not None:
                self._grpc = GrpcServer(
                    self._frontend,
                    self.model,
                    self._metrics,
                    limits,
                    self._budget,
                )
                self.grpc_url = await self._grpc.start(host, self._options.grpc_port)
            self._golden |= await asyncio.to_thread(
                golden_of, self._bundle, self._models, self.works
            )
            await self._frontend.start(self.works)
        except BaseException:
            await self._close()
            raise

    async def stop(self) -> None:
        """Be ready no more; after the options' `shutdown_delay`, refuse new requests, answer those
        in flight, and stop all instances.

        Where it is cancelled, it stops without waiting for answers.
        """
        self._frontend.retire()
        try:
            await asyncio.sleep(self._options.shutdown_delay)
            self._http.drain()
            await self._frontend.drain()
        finally:
            await self._frontend.stop()
            await self._close()

    def begin_faults(self) -> None:
        """Let the time of the options' fault plan begin now; without one, nothing happens."""
        if self._options.faults is not None and isinstance(self._engine, LocalEngine):
            self._engine.inject_faults(self._options.faults)

    async def _close(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop()
        await self._http.stop()

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
