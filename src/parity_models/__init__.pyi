from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from numpy.typing import ArrayLike
from torch import nn

from parity_models.bundle.bundle import Bundle as Bundle
from parity_models.bundle.bundle import open_bundle as open_bundle
from parity_models.bundle.servable import make_bundle as make_bundle
from parity_models.codes import CodeSpec as CodeSpec
from parity_models.errors import ParityModelsError as ParityModelsError
from parity_models.errors import UserError as UserError
from parity_models.evaluation.judging import Evaluation as Evaluation
from parity_models.evaluation.judging import calibrate as calibrate
from parity_models.evaluation.judging import evaluate as evaluate
from parity_models.late.driver import LateAnswer as LateAnswer
from parity_models.late.events import LateEvent as LateEvent
from parity_models.late.httpx import LateTransport as LateTransport
from parity_models.late.late import Late as Late
from parity_models.late.late import testing as testing
from parity_models.late.values import Form as Form
from parity_models.load import LoadSpec as LoadSpec
from parity_models.load import offer_load as offer_load
from parity_models.load.rehearse import Rehearsal as Rehearsal
from parity_models.load.rehearse import rehearse as rehearse
from parity_models.progress import Callbacks as Callbacks
from parity_models.progress import progress_bars as progress_bars
from parity_models.roles import Source as Source
from parity_models.scheduling.choice import PolicyChoice as PolicyChoice
from parity_models.scheduling.policies import Adaptive as Adaptive
from parity_models.scheduling.policies import ApproximateBackup as ApproximateBackup
from parity_models.scheduling.policies import EqualResources as EqualResources
from parity_models.scheduling.policies import Hedging as Hedging
from parity_models.scheduling.policies import NoRedundancy as NoRedundancy
from parity_models.scheduling.policies import Parity as Parity
from parity_models.scheduling.policies import Policy as Policy
from parity_models.scheduling.policies import Replication as Replication
from parity_models.serving.access import Access
from parity_models.serving.engine import Placement
from parity_models.serving.limits import Limits
from parity_models.serving.options import EngineChoice
from parity_models.serving.remote.export import export_repository as export_repository
from parity_models.serving.server import ServeOptions as ServeOptions
from parity_models.serving.server import Server as Server
from parity_models.serving.server import Serving
from parity_models.simulation.emulation import FaultPlan
from parity_models.sizing.comparison import Comparison as Comparison
from parity_models.sizing.plan import Goal as Goal
from parity_models.sizing.plan import Plans as Plans
from parity_models.sizing.protect import Protected as Protected
from parity_models.sizing.protect import SearchOptions as SearchOptions
from parity_models.sizing.scenario import SimulationOptions as SimulationOptions
from parity_models.training import Trained as Trained
from parity_models.training import TrainingOptions as TrainingOptions

__version__: str

_Bundle = Bundle | Path | str
_Model = _Bundle | nn.Module
_Inputs = Path | str | ArrayLike | Mapping[str, ArrayLike]
_Network = str | Callable[..., nn.Module]

# The options of functions, by name: the fields of the classes after which they are called.

class _SceneOptions(TypedDict, total=False):
    rate: float | None
    instances: int | None
    contention: Path | str | None

class _SimulationOptions(_SceneOptions, total=False):
    queries: int | None
    seed: int
    service_time: float | None
    backup_time: float | None
    coverage: float
    differ: float | None
    agreement: float | None

class _Goal(_SimulationOptions, total=False):
    p99: float | None
    p999: float | None
    headroom: float

class _TeachingOptions(TypedDict, total=False):
    output: str | None
    metric: str | None
    hflip: bool
    seed: int
    device: str | None

class _TrainingOptions(_TeachingOptions, total=False):
    epochs: int | None
    seconds: float | None
    resume: bool

class _SearchOptions(_TeachingOptions, _SceneOptions, total=False):
    minutes: float
    differ: float
    agreement: float | None
    answer_only: str | None
    pool: str | None

class _ServeOptions(TypedDict, total=False):
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
    agreement: float | None
    compare: float
    state: Path | None
    journal: Path | None

def plan(  # parity_models.sizing.plan
    bundle: _Bundle | None = None, /, *, options: Goal | None = None, **given: Unpack[_Goal]
) -> Plans: ...
def protect(  # parity_models.sizing.protect
    model: _Model | None = None,
    inputs: _Inputs | None = None,
    /,
    *,
    pairs: Path | str | None = None,
    out: Path | str,
    callbacks: Callbacks | None = None,
    options: SearchOptions | None = None,
    **given: Unpack[_SearchOptions],
) -> Protected: ...
def serve(  # parity_models.serving.server
    bundle: _Bundle, options: ServeOptions | None = None, /, **given: Unpack[_ServeOptions]
) -> Serving: ...
def simulate(  # parity_models.sizing.comparison
    bundle: _Bundle | None = None,
    /,
    *,
    policies: Sequence[str | PolicyChoice] | None = None,
    journal: Path | str | None = None,
    options: SimulationOptions | None = None,
    **given: Unpack[_SimulationOptions],
) -> Comparison: ...
def train_backup(  # parity_models.training
    model: _Model,
    inputs: _Inputs,
    /,
    *,
    out: Path | str,
    network: _Network,
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Unpack[_TrainingOptions],
) -> Trained: ...
def train_parity(  # parity_models.training
    model: _Model,
    inputs: _Inputs,
    /,
    *,
    out: Path | str,
    code: CodeSpec | None = None,
    network: _Network | None = None,
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Unpack[_TrainingOptions],
) -> Trained: ...
