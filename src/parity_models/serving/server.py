"""A server: a bundle's models on an engine, a frontend over them, and HTTP in front."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, inf
from types import TracebackType
from typing import Self

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.faults import FaultPlan
from parity_models.models.bundle import Bundle
from parity_models.scheduling import (
    DEPLOYED,
    EqualResources,
    NoRedundancy,
    Parity,
    Policy,
    SchedulerConfig,
    parity_work,
)
from parity_models.scheduling.policies import AnswerRule, Pool
from parity_models.serving.frontend import Frontend
from parity_models.serving.http import HttpServer, listen, url_of
from parity_models.serving.local.engine import LocalEngine
from parity_models.serving.local.placement import Placement
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest import rest_app
from parity_models.serving.served_model import ServedModel

UNIT_TIMEOUT = 10.0
"""Seconds after which a unit counts as hung, if the deadline is shorter than that."""


class PolicyName(StrEnum):
    """The redundancy policies that a server can be started with."""

    NONE = "none"
    EQUAL_RESOURCES = "equal-resources"
    PARITY = "parity"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve a bundle. Times in seconds, sizes in bytes.

    `policy` None: parity if the bundle has parity models, else none. `parity_instances` are the
    extra instances of parity and of equal resources; None: `instances` times r/k, rounded up.
    `name` None: the bundle's. `port` 0: any that is free. `faults` begin when they are told to.
    `placements`: where each instance runs, or none for all of them beside the server.
    Raises UserError for values out of range.
    """

    policy: PolicyName | None = None
    pool: Pool = Pool.SHARED
    instances: int = 2
    parity_instances: int | None = None
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 1
    max_group_wait: float = 0.01
    parity_delay: float = 0.0
    max_queue: int = 1000
    deadline: float = 10.0
    max_body: int = 64 * 2**20
    answer: AnswerRule = AnswerRule.FIRST
    answer_after: float = 0.0
    faults: FaultPlan | None = None
    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        for name in ("instances", "max_batch", "max_queue", "max_body"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("parity_instances", "max_group_wait", "parity_delay", "answer_after"):
            if not 0 <= (getattr(self, name) or 0) < inf:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.deadline < inf:
            raise UserError(f"deadline must be more than 0, got {self.deadline}")
        if not 0 <= self.port < 2**16:
            raise UserError(f"port must be from 0 to {2**16 - 1}, got {self.port}")
        if self.name is not None and (not self.name or "/" in self.name):
            raise UserError(f"a model cannot be called {self.name!r}; leave out slashes")


class Server:
    """Serves a bundle over the Open Inference Protocol with local instances.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url

    Raises UserError for options that do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions | None = None) -> None:
        options = options or ServeOptions()
        code = bundle.code()
        self.policy = options.policy or (PolicyName.PARITY if code else PolicyName.NONE)
        policy = _policy(self.policy, bundle, code, options)
        self.works = policy.works(options.instances, _parity_instances(options, code))
        if options.faults is not None:
            options.faults.check(len(self.works))
        if options.placements and len(options.placements) != len(self.works):
            raise UserError(
                f"there are {len(options.placements)} placements for {len(self.works)} instances"
            )
        manifest = bundle.manifest
        self.model = ServedModel(
            options.name or manifest.name,
            manifest.deployed.input,
            manifest.deployed.output,
            options.max_queue,
        )
        self._options = options
        metrics = Metrics()
        self._engine = LocalEngine(
            {DEPLOYED: bundle.deployed_path}
            | {parity_work(j): path for j, path in enumerate(bundle.parity_paths)},
            placements=options.placements,
            unit_timeout=max(UNIT_TIMEOUT, options.deadline),
        )
        self._frontend = Frontend(
            self._engine,
            policy,
            SchedulerConfig(
                max_batch=options.max_batch, max_queue=options.max_queue, deadline=options.deadline
            ),
            manifest.deployed.output,
            code if isinstance(policy, Parity) else None,
            metrics,
        )
        self._http = HttpServer(rest_app(self._frontend, self.model, metrics, options.max_body))

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once the server is started."""
        return url_of(self._socket)

    async def start(self) -> None:
        """Bind, and start all instances; returns when the server is ready.

        It is live, but not ready, before. Raises UserError if it cannot listen where it should,
        and ServingError, with nothing left running, if an instance does not start.
        """
        host, port = self._options.host, self._options.port
        try:
            self._socket = listen(host, port)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another host or "
                "port (port 0 takes any that is free)"
            ) from error
        self._listening = asyncio.create_task(self._http.serve([self._socket]))
        try:
            await self._frontend.start(self.works)
        except BaseException:
            await self._close()
            raise

    async def stop(self) -> None:
        """Refuse new requests, answer those in flight, and stop all instances.

        Where it is cancelled, it stops without waiting for answers.
        """
        try:
            await self._frontend.drain()
        finally:
            await self._frontend.stop()
            await self._close()

    def begin_faults(self) -> None:
        """Let the time of the options' fault plan begin now; without one, nothing happens."""
        if self._options.faults is not None:
            self._engine.inject_faults(self._options.faults)

    async def _close(self) -> None:
        self._http.should_exit = True
        await self._listening

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


def _policy(name: PolicyName, bundle: Bundle, code: Code | None, options: ServeOptions) -> Policy:
    if name is PolicyName.NONE:
        return NoRedundancy()
    if name is PolicyName.EQUAL_RESOURCES:
        return EqualResources()
    if code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the policy parity; make one with "
            f"`parm parity --from {bundle.path} --out BUNDLE`, or serve with another policy"
        )
    if options.pool is Pool.DEDICATED and options.parity_instances == 0:
        raise UserError("a dedicated pool needs one parity instance or more, got 0")
    return Parity(
        code,
        pool=options.pool,
        max_group_wait=options.max_group_wait,
        parity_delay=options.parity_delay,
        answer_rule=options.answer,
        answer_after=options.answer_after,
    )


def _parity_instances(options: ServeOptions, code: Code | None) -> int:
    if options.parity_instances is not None:
        return options.parity_instances
    # Without a code there is only equal resources to ask: as for the smallest one.
    k, r = (code.k, code.r) if code else (2, 1)
    return ceil(options.instances * r / k)
