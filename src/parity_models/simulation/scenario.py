"""What is simulated, and what became of the queries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from parity_models.faults import Distribution, FaultPlan
from parity_models.scheduling import RecycleReason, SchedulerConfig, Source
from parity_models.simulation.cores import Cores
from parity_models.simulation.network import Network

SOURCES = tuple(Source)
"""What the numbers in SimulationResult.sources stand for."""

FAILED = -1
"""The source of a query that failed."""


@dataclass(frozen=True)
class Links:
    """The links that queries come to instances by; instance i is machine i of `machines`.

    `row` is how many bytes a query has, by role; a role that is not named has as many as DEPLOYED.
    """

    network: Network
    machines: int
    row: Mapping[str, int]


@dataclass(frozen=True)
class Simulation:
    """What is simulated. Times in seconds.

    What happens while the first `warm_up` queries arrive does not count as work.

    `arrivals` (n,) are the times at which queries arrive, in order. `service` is how long a unit
    takes, by role; a role that is not named takes as long as DEPLOYED. Each row of
    a unit after the first adds a share `further_rows` of that, by role; by default nothing, as on
    an accelerator that is not full. `restart` is how long an instance that was killed or recycled
    is away. `overhead` is added to every dispatch (the engine's round trip). Units come by `links`,
    if there are any. With `cores` units are computed on these, which they share, and times of
    service are seconds of a core. Instance i is on node i modulo `nodes`; None: each has a node to
    itself.

    An instance that hears that its unit is cancelled computes no more, as with the local engine.
    What is on its way to it gets there nevertheless, and faults hold it.
    """

    arrivals: NDArray[np.float64]
    instances: int
    parity_instances: int
    service: Mapping[str, Distribution]
    faults: FaultPlan = field(default_factory=FaultPlan)
    links: Links | None = None
    cores: Cores | None = None
    restart: float = 1.0
    overhead: float = 0.0
    nodes: int | None = None
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    seed: int = 0
    warm_up: int = 0
    further_rows: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulationResult:
    """What became of the queries, in order of arrival.

    `latencies` (n,) in seconds, `sources` (n,) indices into SOURCES or FAILED. `units`, `busy` and
    `rows` are how many units ran, how many instance-seconds they took, and how many rows were in
    them, by role. `recycled` are how many instances were recycled, by reason. `lag` is how long
    reports waited for the server's process on average, in seconds.
    """

    latencies: NDArray[np.float64]
    sources: NDArray[np.int8]
    units: dict[str, int]
    busy: dict[str, float]
    recycled: dict[RecycleReason, int]
    rows: dict[str, int] = field(default_factory=dict)
    lag: float = 0.0
