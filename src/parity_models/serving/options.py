"""How to serve a bundle: every option of a server, checked."""

from dataclasses import dataclass, field
from math import inf, isfinite

from parity_models.errors import UserError
from parity_models.faults import FaultPlan
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.limits import Limits
from parity_models.serving.local.placement import Placement
from parity_models.serving.remote.upstream import Fleet
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
    noticed. An instance answers a golden query of each work when it joins, and after every
    `verify_every` queries of that work; 0: never.
    `placements`: where each instance runs, or none for all of them beside the server. `fleet`:
    servers that run the models, in place of local instances.
    Raises UserError for values out of range.
    """

    policy: PolicyChoice | None = None
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
    verify_every: int = 100

    def __post_init__(self) -> None:
        for name in ("instances", "max_batch", "max_queue", "min_ready"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.parity_instances is not None and self.parity_instances < 0:
            raise UserError(f"parity_instances must be 0 or more, got {self.parity_instances}")
        if self.verify_every < 0:
            raise UserError(f"verify_every must be 0 or more, got {self.verify_every}")
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
