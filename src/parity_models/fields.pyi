"""The options of functions, by name, for type checkers: the fields of the classes after which they
are called."""

from pathlib import Path
from typing import TypedDict

from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.access import Access
from parity_models.serving.engine import Placement
from parity_models.serving.limits import Limits
from parity_models.serving.options import EngineChoice
from parity_models.simulation.emulation import FaultPlan
from parity_models.trust.gate import RequestedLevel

class ScenarioOptionsFields(TypedDict, total=False):
    rate: float | None
    instances: int | None
    contention: Path | str | None

class SimulationOptionsFields(ScenarioOptionsFields, total=False):
    queries: int | None
    seed: int
    service_time: float | None
    backup_time: float | None
    differ: float | None
    agreement: RequestedLevel

class GoalFields(SimulationOptionsFields, total=False):
    p99: float | None
    p999: float | None
    headroom: float

class TeachingOptionsFields(TypedDict, total=False):
    output: str | None
    metric: str | None
    hflip: bool
    seed: int
    device: str | None

class TrainingOptionsFields(TeachingOptionsFields, total=False):
    epochs: int | None
    seconds: float | None
    resume: bool

class SearchOptionsFields(TeachingOptionsFields, ScenarioOptionsFields, total=False):
    minutes: float
    differ: float
    agreement: float | None
    answer_only: str | None
    pool: str | None

class ServeOptionsFields(TypedDict, total=False):
    policy: PolicyChoice | str | None
    engine: EngineChoice | str
    instances: int | None
    extra_instances: int | None
    stand_in_only: bool
    name: str | None
    host: str
    port: int | None
    reuse_port: bool
    ui: bool
    grpc_port: int | None
    max_batch: int | None
    max_queue: int
    deadline: float
    limits: Limits
    access: Access
    tenant_header: str | None
    share_groups: bool
    faults: FaultPlan | None
    placements: tuple[Placement, ...]
    shutdown_delay: float
    verify_every: int
    differ: float | None
    agreement: RequestedLevel
    compare: float
    state: Path | None
    journal: Path | None
