"""The engines by name, and every option of a server, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from parity_models.errors import UserError
from parity_models.options import SECONDS, SHARE, Option, Options, Value
from parity_models.registry import Registry
from parity_models.scheduling.choice import DIFFER, DIFFER_OR_DEFAULT, PolicyChoice
from parity_models.serving.access import MAX_PORT, Access, tenant_header
from parity_models.serving.engine import Engine, Placement
from parity_models.serving.limits import Limits
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.local.thread_engine import ThreadEngine
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models.simulation.emulation import FaultPlan

UNIT_TIMEOUT = 10.0
"""Seconds that a unit may always take, however short the deadline."""

ENGINES = Registry[Engine]("engine", Engine, LocalEngine, ThreadEngine, RemoteEngine, RayEngine)
"""All engines."""


@dataclass(frozen=True, kw_only=True)
class Budget(Options):
    """A change of the budget of a running server."""

    differ: Annotated[float, DIFFER]


@dataclass(frozen=True)
class EngineChoice:
    """An engine by name, and its given options as plain values, as in a file.

    Raises:
        UserError: The name or an option is unknown, or a value is out of range.

    """

    name: str = "local"
    options: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.settings

    @property
    def kind(self) -> type[Engine]:
        """The engine's class."""
        return ENGINES.find(self.name)

    @property
    def settings(self) -> Any:
        """The engine's `Options`."""
        return ENGINES.options(self.name, self.options)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """The options of a server. Times are in seconds, sizes in bytes.

    Fields that are not in this list are explained where they are declared.

    Args:
        policy: The redundancy policy; None: the bundle's `default_policy`.
        engine: Runs the models.
        port: None: the server does not listen, and only answers `predict` in the same program.
        limits: Bound what clients can make the server hold.
        access: Restricts the clients.
        faults: A fault plan; `begin_faults` starts its clock.
        placements: Where each instance runs; none: all next to the server.

    Raises:
        UserError: A value is out of range, or the engine does not support an option.

    """

    policy: PolicyChoice | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    instances: Annotated[
        int | None, Option("Workers in all; by default 3.", at_least=1, at_most=100_000)
    ] = None
    extra_instances: Annotated[
        int | None,
        Option(
            "How many of these run only stand-ins, if the policy has any; by default r of k + r.",
            at_least=1,
        ),
    ] = None
    stand_in_only: Annotated[
        bool,
        Option("Serve the backup alone, behind a proxy: 200 if its gate lets it answer, else 503."),
    ] = False
    name: Annotated[
        str | None, Option("The model's name; by default the bundle's.", metavar="NAME")
    ] = None
    host: Annotated[
        str, Option("The address to listen on; 0.0.0.0 for every network.", metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        Option("The port to listen on; 0 takes any that is free.", at_least=0, at_most=MAX_PORT),
    ] = 8000
    reuse_port: Annotated[
        bool,
        Option(
            "Share the ports with your other servers, so that a restart in place loses nothing."
        ),
    ] = False
    ui: Annotated[bool, Option("Show a live page, at /ui/, to browsers on this machine.")] = False
    grpc_port: Annotated[
        int | None,
        Option(
            "Speak gRPC too, on this port (Triton's is 8001); 0 takes any that is free.",
            at_least=0,
            at_most=MAX_PORT,
        ),
    ] = None
    max_batch: Annotated[
        int | None,
        Option(
            "Maximum number of queries in a batch; by default 4 if the model batches well, else 1.",
            at_least=1,
        ),
    ] = None
    max_queue: Annotated[
        int,
        Option("Queries that may wait for an instance; more are refused (503).", at_least=1),
    ] = 1000
    deadline: Annotated[
        float,
        Option(
            "Time until a query fails (504); a request's timeout can shorten it.",
            unit=SECONDS,
            typed="s",
            above=0,
            at_most=86_400,
        ),
    ] = 10.0
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    tenant_header: Annotated[
        str | None,
        Option(
            "The header or gRPC metadata key of a request's tenant; requests without it are exact.",
            metavar="HEADER",
        ),
    ] = None
    share_groups: Annotated[
        bool,
        Option(
            "Let requests without a tenant share coding groups, where one query can spoil others.",
        ),
    ] = False
    faults: FaultPlan | None = None
    placements: tuple[Placement, ...] = ()
    shutdown_delay: Annotated[
        float,
        Option(
            "Time after SIGTERM in which the server is not ready, but still takes requests.",
            unit=SECONDS,
            typed="s",
            at_least=0,
            at_most=86_400,
        ),
    ] = 0.0
    verify_every: Annotated[
        int,
        Option(
            "Queries between two checks of an instance with a golden query. 0: no checks.",
            at_least=0,
        ),
    ] = 100
    differ: Annotated[float | None, DIFFER_OR_DEFAULT] = None
    agreement: Annotated[
        float | None,
        Option(
            "Minimum agreement of single answers of stand-ins: a gate. 0: no gates.",
            at_least=0,
            below=1,
            unit=SHARE,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and (not self.name or "/" in self.name):
            raise UserError(f"a model cannot be called {self.name!r}; leave out slashes")
        if not self.host:
            raise UserError("--host is an address; for every network write 0.0.0.0")
        if self.tenant_header is not None:
            object.__setattr__(self, "tenant_header", tenant_header(self.tenant_header))
        if self.ui and self.port is None:
            raise UserError("the live page needs a port; give --port, or leave --ui out")
        if self.stand_in_only:
            self._check_stand_in_only()
        engine = self.engine
        if self.faults is not None and not engine.kind.takes_faults:
            raise UserError(f"faults are not for the engine {engine.name}; leave them out")
        if self.placements and not engine.kind.takes_placements:
            raise UserError(f"placements are not for the engine {engine.name}; leave them out")

    def _check_stand_in_only(self) -> None:
        needless = ("policy", "differ", "extra_instances", "ui", "max_batch", "faults")
        for name in needless:
            if getattr(self, name) not in (None, False):
                raise UserError(
                    f"--{name.replace('_', '-')} is for servers that run the model; leave it out "
                    "with --stand-in-only"
                )

    @property
    def workers(self) -> int:
        """The `instances`, or 3."""
        return self.instances or 3

    @property
    def unit_timeout(self) -> float:
        """Seconds after which a unit counts as hung."""
        return max(UNIT_TIMEOUT, self.deadline)
