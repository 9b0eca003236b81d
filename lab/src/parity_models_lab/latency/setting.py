"""The conditions of one run of a latency experiment, whatever the policy."""

from math import ceil, exp, prod
from random import Random
from statistics import fmean
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from parity_models.codes import DECODERS, Code, CodeSpec
from parity_models.emulation import (
    ColdStart,
    Constant,
    Degradation,
    Distribution,
    Duration,
    Exponential,
    Factor,
    FaultPlan,
    Kill,
    LogNormal,
    Neighbours,
    Pauses,
    Slowdowns,
    Spell,
    Uniform,
)
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models_lab.contention.processor import Hogs
from parity_models_lab.contention.transfers import Network
from parity_models_lab.latency.link import Links

Count = Annotated[int, Meta(ge=1, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]

StandInKind = Literal["parity", "backup"]

QUERY_SHAPE = (1, 112, 112)
"""Of a query in real runs, float32: 50 kB. That is to the shaped links what the paper's queries of
some 600 kB are to its own, ten times as fast."""

OUTPUT_SHAPE = (10,)

SLOWED = 2
"""The cores of a machine with a `speed`."""


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second, lightly loaded deployment of the same model, on the machines of some workers.

    Each of its `instances` shares the accelerator of another worker, drawn at random: of two units
    there, one waits. Its queries are Poisson, `rate` a second in all; each takes `service_time`.
    """

    instances: Count = 4
    rate: Annotated[float, Meta(gt=0, le=10_000)] = 60.0
    service_time: Distribution = Constant(0.02)


class Bursts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queries come `factor` times as often in the last `length` of every `every` seconds."""

    factor: Annotated[float, Meta(gt=1, le=100)]
    every: Spell = 20.0
    length: Spell = 2.0

    def __post_init__(self) -> None:
        if self.length >= self.every:
            raise ValueError("bursts leave no time between them: make length shorter")

    def compress(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `times` (n,) at a constant rate, those in bursts the closer together for it."""
        calm = self.every - self.length
        cycle, into = np.divmod(times, calm + self.length * self.factor)
        within = np.where(into < calm, into, calm + (into - calm) / self.factor)
        return np.asarray(cycle * self.every + within)


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions of a run, whatever the policy. Times in seconds.

    `instances` run the deployed model. Every policy except `none` has extra instances:
    instances / k of them, rounded up. The offered load is `rate` in queries
    per second, or, where that is None, `load` as a share of what `instances` alone can carry;
    with a `burst`, outside of bursts.
    `service` is the emulated service time of a batch of up to `max_batch` queries,
    `backup_service` that of an approximate backup; it is waited for, or with `computing` computed
    for, in simulations by as many cores as there are here. `speed` is the share of two cores' time
    that the server's processes get together, in real runs by a quota; 0: no quota, and simulations
    have no such processes. The code has the `decoder` and its usual encoder. Stand-ins may answer a
    share `coverage` of the queries, drawn for each. `stand_ins` are those that the bundle has for a
    policy that can use either.

    Contention, of which there may be several kinds:
    `shuffles` background transfers run at all times, through the links that queries take. With
    `quiet_links` queries take such links without shuffles.
    With `hogs`, instances are pinned to cores; models are computing then.
    One instance, drawn at random, is killed every `kill_every` seconds; 0: never.

    Slowness, which workers obey, real or simulated (see `FaultPlan`): instances of a `tenant`, each
    on the machine of one of ours, `pauses`, `slowdowns`, a `degraded` set of instances, the `cold`
    start of an instance that takes a killed one's place, `generations`. With `nodes`, instance i is
    on node i modulo that; pauses and slowdowns are whole nodes'.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    decoder: str = "separate"
    rate: Rate | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    burst: Bursts | None = None
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Distribution = LogNormal(0.025, 0.05)
    backup_service: Distribution = LogNormal(0.0125, 0.05)
    computing: bool = False
    speed: Annotated[float, Meta(ge=0, le=1)] = 0.0
    stand_ins: Annotated[tuple[StandInKind, ...], Meta(min_length=1)] = ("parity",)
    coverage: Annotated[float, Meta(ge=0, le=1)] = 1.0
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    quiet_links: bool = False
    tenant: Tenant | None = None
    hogs: Hogs | None = None
    pauses: Pauses | None = None
    kill_every: Duration = 0.0
    nodes: Annotated[int, Meta(ge=0, le=100_000)] = 0
    slowdowns: Slowdowns | None = None
    degraded: Degradation | None = None
    cold: ColdStart | None = None
    generations: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        if self.tenant and self.k > 0 and self.tenant.instances > self.all_instances:
            raise ValueError(
                f"{self.tenant.instances} instances of another tenant cannot each share a machine "
                f"with one of {self.all_instances}"
            )
        if mean_of(self.service) <= 0:
            raise ValueError("units take no time: give a service time above 0")
        if self.hogs and not self.computing:
            raise ValueError("hogs take nothing from units that wait: set computing")
        if 0 < self.kill_every < 0.1:
            raise ValueError(
                f"kill_every is {self.kill_every} s; give 0.1 s or more, or 0 for never"
            )

    @property
    def parity_instances(self) -> int:
        return ceil(self.instances / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.parity_instances

    @property
    def code(self) -> CodeSpec:
        encoder = "stack" if DECODERS.find(self.decoder).tells_slots else "sum"
        return CodeSpec(encoder, self.decoder, self.k)

    @property
    def queries_per_second(self) -> float:
        """The offered load outside of bursts."""
        if self.rate is not None:
            return self.rate
        paces = self.generations or (1.0,)
        share = fmean(1 / paces[each % len(paces)] for each in range(self.instances))
        return self.load * self.instances * self.max_batch * share / mean_of(self.service)

    def seconds(self, queries: int) -> float:
        """Return the seconds in which a number of queries arrives, about."""
        seconds = queries / self.queries_per_second
        return seconds if self.burst is None else float(self.burst.compress(np.array(seconds)))

    @property
    def network(self) -> Network | None:
        """The links, where there are any."""
        if self.all_instances == 1 or not (self.shuffles or self.quiet_links):
            return None
        return Network(shuffles=self.shuffles)

    def links(self, seed: int) -> Links | None:
        """Return the links of simulated runs, to which real ones are shaped."""
        network = self.network
        if network is None:
            return None
        code = Code(self.code, QUERY_SHAPE, OUTPUT_SHAPE)
        row = {DEPLOYED: 4 * prod(QUERY_SHAPE), parity_role(0): 4 * prod(code.parity_shape)}
        return Links(network, self.all_instances, row, seed)

    def faults(self, seed: int, seconds: float) -> FaultPlan:
        """Return the plan of real and simulated workers: service times, slowness, and kills for
        `seconds`. Transfers are those of links, and hogs are on cores."""
        rng = Random(f"{seed}/kills")
        kills = ceil(seconds / self.kill_every) if self.kill_every else 0
        workers, neighbours = range(self.all_instances), None
        if tenant := self.tenant:
            shared = sorted(Random(f"{seed}/machines").sample(workers, tenant.instances))
            rate = tenant.rate / tenant.instances
            neighbours = Neighbours(rate, tenant.service_time, tuple(shared))
        return FaultPlan(
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            computing=self.computing,
            slowdowns=replace(self.slowdowns, nodes=self.nodes) if self.slowdowns else None,
            pauses=replace(self.pauses, nodes=self.nodes) if self.pauses else None,
            neighbours=neighbours,
            generations=self.generations,
            degradation=self.degraded,
            cold_start=self.cold,
            coverage=self.coverage,
            kills=tuple(Kill(rng.choice(workers), self.kill_every * (i + 1)) for i in range(kills)),
        )


def mean_of(distribution: Distribution) -> float:
    """Return the distribution's mean."""
    match distribution:
        case Constant(seconds):
            return seconds
        case Uniform(low, high):
            return (low + high) / 2
        case Exponential(mean):
            return mean
        case LogNormal(median, sigma):
            return median * exp(sigma**2 / 2)
