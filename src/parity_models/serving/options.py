"""The engines by name, and every option of a server, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from parity_models.errors import UserError, spell
from parity_models.options import Options, Value, option
from parity_models.registry import Registry
from parity_models.scheduling.choice import DIFFER_OR_DEFAULT, PolicyChoice
from parity_models.scheduling.work import COMPARE
from parity_models.serving.access import MAX_PORT, Access, tenant_header
from parity_models.serving.engine import Engine, Placement
from parity_models.serving.limits import Limits
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.local.thread_engine import ThreadEngine
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models.simulation.emulation import FaultPlan
from parity_models.trust.gate import AGREEMENT_OPTION, DEFAULT, RequestedLevel

UNIT_TIMEOUT = 10.0
"""Seconds that a unit may always take, however short the deadline."""

ENGINES = Registry[Engine]("engine", Engine, LocalEngine, ThreadEngine, RemoteEngine, RayEngine)
"""All engines."""


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

    @classmethod
    def parse(cls, text: str) -> "EngineChoice":
        """Parse an engine such as ray@address=auto. Raises UserError as EngineChoice does."""
        return cls(*ENGINES.read(text))

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
    instances: int | None = option(None, "Workers in all; by default 3.", ge=1, le=100_000)
    extra_instances: int | None = option(
        None,
        "How many of these run only stand-ins, if the policy has any; by default r of k + r.",
        ge=1,
    )
    stand_in_only: bool = option(
        False, "Serve the backup alone, behind a proxy: 200 if its gate lets it answer, else 503."
    )
    name: str | None = option(None, "The model's name; by default the bundle's.", metavar="NAME")
    host: str = option(
        "127.0.0.1", "The address to listen on; 0.0.0.0 for every network.", metavar="ADDRESS"
    )
    port: int | None = option(
        8000, "The port to listen on; 0 takes any that is free.", ge=0, le=MAX_PORT
    )
    reuse_port: bool = option(
        False, "Share the ports with your other servers, so that a restart in place loses nothing."
    )
    ui: bool = option(False, "Show a live page, at /ui/, to browsers on this machine.")
    grpc_port: int | None = option(
        None,
        "Speak gRPC too, on this port (Triton's is 8001); 0 takes any that is free.",
        ge=0,
        le=MAX_PORT,
    )
    max_batch: int | None = option(
        None,
        "Maximum number of queries in a batch; by default up to 16 if the model batches well.",
        ge=1,
    )
    max_queue: int = option(
        1000, "Queries that may wait for an instance; more are refused (503).", ge=1
    )
    deadline: float = option(
        10.0,
        "Time until a query fails (504); a request's timeout can shorten it.",
        unit="s",
        gt=0,
        le=86_400,
    )
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    tenant_header: str | None = option(
        None,
        "The header or gRPC metadata key of a request's tenant; requests without it are exact.",
        metavar="HEADER",
    )
    share_groups: bool = option(
        False,
        "Let requests without a tenant share coding groups, where one query can spoil others.",
    )
    faults: FaultPlan | None = None
    placements: tuple[Placement, ...] = ()
    shutdown_delay: float = option(
        0.0,
        "Time after SIGTERM in which the server is not ready, but still takes requests.",
        unit="s",
        ge=0,
        le=86_400,
    )
    verify_every: int = option(
        100, "Queries between two checks of an instance with a golden query. 0: no checks.", ge=0
    )
    differ: Annotated[float | None, DIFFER_OR_DEFAULT] = None
    agreement: Annotated[RequestedLevel, AGREEMENT_OPTION] = DEFAULT
    compare: float = option(
        COMPARE,
        "Share of queries that idle instances run on a stand-in too, to learn from.",
        ge=0,
        le=1,
        unit="share",
    )
    state: Path | None = option(
        None,
        "Where what is learned of stand-ins is kept; by default in the bundle.",
        metavar="DIR",
    )
    journal: Path | None = option(
        None,
        "Record what the scheduler sees and does; parm simulate replays and explains it.",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and (not self.name or "/" in self.name):
            raise UserError(f"a model cannot be called {self.name!r}; leave out slashes")
        if not self.host:
            raise UserError(f"{spell('host')} is an address; for every network write 0.0.0.0")
        if self.tenant_header is not None:
            object.__setattr__(self, "tenant_header", tenant_header(self.tenant_header))
        if self.ui and self.port is None:
            raise UserError(
                f"the live page needs a port; give {spell('port')}, or leave {spell('ui')} out"
            )
        if self.stand_in_only:
            self._check_stand_in_only()
        engine = self.engine
        if self.faults is not None and not engine.kind.takes_faults:
            raise UserError(f"faults are not for the engine {engine.name}; leave them out")
        if self.placements and not engine.kind.takes_placements:
            raise UserError(f"placements are not for the engine {engine.name}; leave them out")

    def _check_stand_in_only(self) -> None:
        needless = ("policy", "differ", "extra_instances", "ui", "max_batch", "faults", "journal")
        for name in needless:
            if getattr(self, name) not in (None, False):
                raise UserError(
                    f"{spell(name)} is for servers that run the model; leave it out with "
                    f"{spell('stand_in_only')}"
                )

    @property
    def workers(self) -> int:
        """The `instances`, or 3."""
        return self.instances or 3

    @property
    def unit_timeout(self) -> float:
        """Seconds after which a unit counts as hung."""
        return max(UNIT_TIMEOUT, self.deadline)
