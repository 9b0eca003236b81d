"""A server: a bundle's models on an engine, a frontend over them, and protocols in front."""

import asyncio
from dataclasses import dataclass, field
from math import ceil, inf, isfinite, prod
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.faults import FaultPlan
from parity_models.models.bundle import Bundle, ModelFile
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import BACKUP, DEPLOYED, Policy, SchedulerConfig, parity_work
from parity_models.scheduling.policies import Pool
from parity_models.scheduling.spec import PolicyName, PolicySpec
from parity_models.serving.descriptors import allow_descriptors
from parity_models.serving.engine import Engine
from parity_models.serving.frontend import Frontend
from parity_models.serving.grpc.server import GrpcServer
from parity_models.serving.http import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.local.engine import LocalEngine
from parity_models.serving.local.placement import Placement
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.engine import RemoteEngine
from parity_models.serving.remote.upstream import Fleet
from parity_models.serving.rest import Rest
from parity_models.serving.screen import Screen
from parity_models.serving.served_model import ServedModel
from parity_models.serving.tenancy import tenant_header

UNIT_TIMEOUT = 10.0
"""Seconds that a unit may always take, however short the deadline."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve a bundle. Times in seconds, sizes in bytes.

    `policy` None: the bundle's `default_policy`. `parity_instances` are the extra ones that all
    policies but none have; None: `instances` times r/k, rounded up. `name` None: the bundle's.
    `port` 0: any that is free; `grpc_port` likewise, None: no gRPC. `default_prediction` answers
    queries that would fail at their deadline: a row of output, or one value for all of it.
    `tenant_header` names the header, or gRPC metadata, that says whose a request is; a request
    without it is served exact. `limits` bound what clients can make the server hold. `faults`
    begin when they are told to. The server is ready while `min_ready` instances run the deployed
    model; told to stop, it is not ready but goes on for `shutdown_delay`, until load balancers have
    noticed.
    `placements`: where each instance runs, or none for all of them beside the server. `fleet`:
    servers that run the models, in place of local instances.
    Raises UserError for values out of range.
    """

    policy: PolicySpec | None = None
    instances: int = 2
    parity_instances: int | None = None
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    max_batch: int = 1
    max_queue: int = 1000
    deadline: float = 10.0
    limits: Limits = field(default_factory=Limits)
    default_prediction: tuple[float, ...] | None = None
    tenant_header: str | None = None
    faults: FaultPlan | None = None
    placements: tuple[Placement, ...] = ()
    fleet: Fleet | None = None
    min_ready: int = 1
    shutdown_delay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("instances", "max_batch", "max_queue", "min_ready"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.parity_instances is not None and self.parity_instances < 0:
            raise UserError(f"parity_instances must be 0 or more, got {self.parity_instances}")
        if not 0 <= self.shutdown_delay < inf:
            raise UserError(f"shutdown_delay must be 0 or more, got {self.shutdown_delay}")
        if not 0 < self.deadline < inf:
            raise UserError(f"deadline must be more than 0, got {self.deadline}")
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) < 2**16:
                raise UserError(f"{name} must be from 0 to {2**16 - 1}, got {getattr(self, name)}")
        if self.name is not None and (not self.name or "/" in self.name):
            raise UserError(f"a model cannot be called {self.name!r}; leave out slashes")
        if not all(map(isfinite, self.default_prediction or ())):
            raise UserError("default_prediction must be finite numbers")
        if self.tenant_header is not None:
            object.__setattr__(self, "tenant_header", tenant_header(self.tenant_header))
        if self.fleet is not None and (self.faults is not None or self.placements):
            raise UserError("faults and placements are for local workers, not for upstreams")

    @property
    def unit_timeout(self) -> float:
        """Seconds after which a unit counts as hung."""
        return max(UNIT_TIMEOUT, self.deadline)


def default_policy(bundle: Bundle, fleet: Fleet | None = None) -> PolicyName:
    """The policy of a bundle that is served without a word on it: adaptive parity if its parity
    models run somewhere, and over a fleet that has a backup instead, approximate backup."""
    runs = frozenset[str]() if fleet is None else frozenset[str]().union(*fleet.works)
    if bundle.manifest.code is not None and (fleet is None or parity_work(0) in runs):
        return PolicyName.ADAPTIVE_PARITY
    return PolicyName.APPROXIMATE_BACKUP if BACKUP in runs else PolicyName.NONE


class Server:
    """Serves a bundle over the Open Inference Protocol with local instances, or over a fleet.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url; server.grpc_url, if there is one

    Raises UserError for options that do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions | None = None) -> None:
        options = options or ServeOptions()
        self.policy = policy_of(bundle, options).name
        self.works = works_of(bundle, options)
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
        self.model = served_model(bundle, options)
        self._options = options
        self._metrics = metrics = Metrics(bundle.digest)
        models = {work: bundle.pinned(model) for work, model in model_files(bundle).items()}
        self._engine: LocalEngine | RemoteEngine = (
            LocalEngine(
                models,
                placements=options.placements,
                unit_timeout=options.unit_timeout,
                metrics=metrics,
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
        self._frontend = frontend_of(bundle, options, self._engine, metrics)
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


def policy_of(bundle: Bundle, options: ServeOptions) -> PolicySpec:
    """The policy that the bundle is served with. Raises UserError if it cannot be."""
    spec = options.policy or PolicySpec(name=default_policy(bundle, options.fleet))
    _check_policy(spec, bundle, options)
    return spec


def works_of(bundle: Bundle, options: ServeOptions) -> list[frozenset[str]]:
    """What each instance runs. Raises UserError for options that do not fit the bundle."""
    spec = policy_of(bundle, options)
    code = bundle.code()
    policy, _ = spec.build(code)
    if options.fleet is None:
        return policy.works(options.instances, _parity_instances(options, code))
    _check_fleet(spec, policy, options.fleet)
    return options.fleet.works


def model_files(bundle: Bundle) -> dict[str, ModelFile]:
    """The bundle's model files, by the work of running them."""
    manifest = bundle.manifest
    files = {DEPLOYED: manifest.deployed}
    files |= {parity_work(j): model for j, model in enumerate(manifest.parity)}
    if manifest.backup is not None:
        files[BACKUP] = manifest.backup
    return files


def served_model(bundle: Bundle, options: ServeOptions) -> ServedModel:
    """The model as clients see it."""
    deployed = bundle.manifest.deployed
    name = options.name or bundle.manifest.name
    return ServedModel(
        name,
        deployed.input,
        deployed.output,
        options.max_queue,
        options.tenant_header,
        bundle.digest,
    )


def frontend_of(
    bundle: Bundle, options: ServeOptions, engine: Engine, metrics: Metrics
) -> Frontend:
    """A frontend for the bundle's deployed model, over this engine.

    Raises UserError for options that do not fit the bundle.
    """
    spec = policy_of(bundle, options)
    code = bundle.code()
    policy, dispatch = spec.build(code)
    output = bundle.manifest.deployed.output
    return Frontend(
        engine,
        policy,
        SchedulerConfig(
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            deadline=options.deadline,
            default_prediction=options.default_prediction is not None,
        ),
        output,
        code if spec.name.needs_code else None,
        metrics,
        dispatch=dispatch,
        default=_default(options, output),
        screen=Screen(bundle.envelope()),
        min_ready=options.min_ready,
    )


def _check_policy(spec: PolicySpec, bundle: Bundle, options: ServeOptions) -> None:
    """The bundle has the models for the policy, and there are instances for them."""
    if spec.name.needs_code and bundle.manifest.code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the policy {spec.name}; make one with "
            f"`parm parity --from {bundle.path} --out BUNDLE`, or serve with another policy"
        )
    backup = spec.name is PolicyName.APPROXIMATE_BACKUP
    if backup and bundle.manifest.backup is None:
        raise UserError(
            f"{bundle.path} has no backup model for the policy {spec.name}; make one with `parm "
            f"backup --from {bundle.path} --network linear --out BUNDLE`, or serve with another "
            "policy"
        )
    dedicated = spec.name is PolicyName.PARITY and spec.pool is Pool.DEDICATED
    if options.parity_instances == 0 and (backup or dedicated):
        what = "a backup" if backup else "a dedicated pool"
        raise UserError(f"{what} needs one parity instance or more, got 0")


def _check_fleet(spec: PolicySpec, policy: Policy, fleet: Fleet) -> None:
    """The fleet runs what the policy sends."""
    needed = frozenset[str]().union(*policy.works(1, 1))
    missing = needed - frozenset().union(*fleet.works)
    if missing:
        raise UserError(
            f"the policy {spec.name} needs upstreams that run {', '.join(sorted(missing))}; give "
            "them with --deployed, --parity or --backup, or serve with another policy"
        )


def _default(options: ServeOptions, output: TensorSpec) -> NDArray[Any] | None:
    """The row that answers queries at their deadline: (*output shape), or None."""
    values = options.default_prediction
    if values is None:
        return None
    if len(values) not in (1, prod(output.shape)):
        raise UserError(
            f"the default prediction has {len(values)} values; an output {output} has "
            f"{prod(output.shape)}: give all of them, or one for all"
        )
    wanted = np.broadcast_to(np.array(values), prod(output.shape)).reshape(output.shape)
    with np.errstate(all="ignore"):
        row = wanted.astype(output.dtype)
    if not np.allclose(row.astype(np.float64), wanted, rtol=1e-2):
        raise UserError(f"the default prediction has values that {output.datatype} cannot hold")
    return row


def _parity_instances(options: ServeOptions, code: Code | None) -> int:
    if options.parity_instances is not None:
        return options.parity_instances
    # Without a code the extra instances are as many as for the smallest one.
    k, r = (code.k, code.r) if code else (2, 1)
    return ceil(options.instances * r / k)
