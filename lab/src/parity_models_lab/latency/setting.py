"""The conditions of one run of a latency experiment, whatever the policy."""

import os
from dataclasses import dataclass
from math import ceil, exp, inf, prod
from random import Random
from statistics import fmean
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from parity_models.codes import DECODERS, Code, CodeSpec
from parity_models.emulation import (
    ColdStart,
    Constant,
    Degradation,
    Distribution,
    Duration,
    Empirical,
    Exponential,
    Factor,
    FaultPlan,
    Kill,
    LogNormal,
    Neighbours,
    Pauses,
    Shuffles,
    Slowdowns,
    Spell,
    Uniform,
)
from parity_models.options import Value
from parity_models.scheduling import BACKUP, DEPLOYED, parity_role
from parity_models_lab.contention.plan import Contention, Hogs, Tenant
from parity_models_lab.contention.transfers import Network
from parity_models_lab.latency.cores import Antagonist, Cores
from parity_models_lab.latency.link import Links
from parity_models_lab.latency.overheads import Overheads

Count = Annotated[int, Meta(ge=1, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]

StandInKind = Literal["parity", "backup"]
STAND_INS: tuple[StandInKind, ...] = ("parity", "backup")

QUERY_SHAPE = (1, 112, 112)
"""Of a query in real runs, float32: 50 kB. That is to the shaped links what the paper's queries of
some 600 kB are to its own, ten times as fast."""

OUTPUT_SHAPE = (10,)

SLOWED, SERVING, PER_UNIT = 2, 1.05e-3, 0.6e-3
"""The cores of a machine with a `speed`, and the seconds that one of them computes for a query (by
server and client) and for a unit (by a worker), as measured in real trials at full speed."""


@dataclass(frozen=True)
class Bursts:
    """Arrivals come `factor` times as often for `length` seconds, until every `every` seconds."""

    factor: float
    every: float
    length: float

    def compress(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """`times` (n,) at a constant rate, those in bursts the closer together for it."""
        calm = self.every - self.length
        cycle, into = np.divmod(times, calm + self.length * self.factor)
        within = np.where(into < calm, into, calm + (into - calm) / self.factor)
        return np.asarray(cycle * self.every + within)


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions of a run, whatever the policy. Times in seconds.

    `instances` run the deployed model. Every policy except `none` has extra instances:
    instances * r / k of them, rounded up. The offered load is `rate` in queries
    per second, or, where that is None, `load` as a share of what `instances` alone can carry.
    `service` is the emulated service time of a batch of up to `max_batch` queries,
    `backup_service` that of an approximate backup; it is waited for, or with `computing` computed
    for; in simulations by this many `cores`, 0 for as many as here. `speed` is the share of
    two cores' time that the server's processes get together, in real runs by a quota; 0: no quota,
    and simulations have no such processes. `encoder` and
    `decoder`, with their options, are the code's; without a word on it the encoder is the decoder's
    usual one. Stand-ins may answer a share `coverage` of the queries, drawn for each. `stand_ins`
    are those that the bundle has for a policy that can use either.

    Contention, of which there may be several kinds; 0 is none:
    `shuffles` background transfers run at all times, through the links that queries take. Where
    there are no links, each lasts for a drawn `transfer` and delays a unit of the two instances it
    runs between by a drawn `delay`. With `quiet_links` queries take such links without shuffles.
    `tenants` instances of another tenant each share a machine with one of ours; their load is
    `tenant_rate` queries a second in all, each of `tenant_service`.
    `hogs` processes on every core take what they can get of it, in spells of `hog_spell` on
    average, `hog_gap` apart; instances are pinned to cores.
    Each instance is stopped for a drawn `pause` every `pause_every` seconds on average.
    One instance, drawn at random, is killed every `kill_every` seconds.

    Slowness and failures, which workers obey, real or simulated:
    With `nodes`, instance i is on node i modulo that; pauses and slow spells are whole nodes'.
    In spells of `slow_spell` on average, `slow_every` apart, units take `slow_factor` times as
    long.
    Instances are in `degraded_sets`, which degrade by turns of `degraded_turn`, up to
    `degraded_factor` times their time, and are then as new.
    An instance that takes a killed one's place takes `cold_factor` times as long, less and less
    over `cold_length`.
    Units of instance i take `generations[i]` times as long, over and over from the first one.
    For the last `burst_length` of every `burst_every`, queries come `burst` times as often as
    `rate` or `load` say.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    r: Annotated[int, Meta(ge=1, le=3)] = 1
    encoder: str | None = None
    decoder: str = "separate"
    encoder_options: dict[str, Value] = {}
    decoder_options: dict[str, Value] = {}
    rate: Rate | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Distribution = LogNormal(0.025, 0.05)
    backup_service: Distribution = LogNormal(0.0125, 0.05)
    computing: bool = False
    cores: Annotated[int, Meta(ge=0, le=100_000)] = 0
    speed: Annotated[float, Meta(ge=0, le=1)] = 0.0
    stand_ins: Annotated[tuple[StandInKind, ...], Meta(min_length=1)] = ("parity",)
    coverage: Annotated[float, Meta(ge=0, le=1)] = 1.0
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    quiet_links: bool = False
    transfer: Distribution = Uniform(0.7, 1.4)
    delay: Distribution = Exponential(0.02)
    tenants: Annotated[int, Meta(ge=0, le=1000)] = 0
    tenant_rate: Annotated[float, Meta(gt=0, le=10_000)] = 60.0
    tenant_service: Distribution = Constant(0.02)
    hogs: Annotated[int, Meta(ge=0, le=100)] = 0
    hog_gap: Duration = 2.0
    hog_spell: Spell = 1.0
    pause_every: Duration = 0.0
    pause: Distribution = Exponential(0.1)
    kill_every: Duration = 0.0
    nodes: Annotated[int, Meta(ge=0, le=100_000)] = 0
    slow_every: Duration = 0.0
    slow_spell: Spell = 1.0
    slow_factor: Factor = 3.0
    degraded_sets: Annotated[int, Meta(ge=0, le=100_000)] = 0
    degraded_turn: Spell = 20.0
    degraded_factor: Factor = 6.0
    cold_factor: Factor = 1.0
    cold_length: Spell = 5.0
    generations: tuple[Factor, ...] = ()
    burst: Annotated[float, Meta(ge=1, le=100)] = 1.0
    burst_every: Spell = 20.0
    burst_length: Spell = 2.0

    def __post_init__(self) -> None:
        if self.k > 0 and self.tenants > max(0, self.all_instances):
            raise ValueError(
                f"{self.tenants} instances of another tenant are to be each beside another one, "
                f"but there are {self.all_instances}"
            )
        if mean_of(self.service) <= 0:
            raise ValueError("units take no time: give a service time above 0")
        if self.slow_every and self.hogs:
            raise ValueError("hogs make slow spells themselves: leave out slow_every")
        if self.burst > 1 and self.burst_length >= self.burst_every:
            raise ValueError("bursts leave no time between them: make burst_length shorter")
        for name, least in (("pause_every", 0.001), ("kill_every", 0.1)):
            if 0 < getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)} s; give {least} s or more, or 0 for never"
                )

    @property
    def parity_instances(self) -> int:
        return ceil(self.instances * self.r / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.parity_instances

    @property
    def code(self) -> CodeSpec:
        return CodeSpec(
            self.encoder or ("stack" if DECODERS.find(self.decoder).tells_slots else "sum"),
            self.decoder,
            self.k,
            self.r,
            self.encoder_options,
            self.decoder_options,
        )

    @property
    def queries_per_second(self) -> float:
        """Outside of bursts."""
        if self.rate is not None:
            return self.rate
        paces = self.generations or (1.0,)
        share = fmean(1 / paces[each % len(paces)] for each in range(self.instances))
        return self.load * self.instances * self.max_batch * share / mean_of(self.service)

    @property
    def bursts(self) -> Bursts | None:
        if self.burst == 1:
            return None
        return Bursts(self.burst, self.burst_every, self.burst_length)

    def seconds(self, queries: int) -> float:
        """Return the seconds in which so many queries arrive, about."""
        seconds = queries / self.queries_per_second
        return seconds if self.bursts is None else float(self.bursts.compress(np.array(seconds)))

    def faults(self, seed: int, seconds: float) -> FaultPlan:
        """Return the plan of real and simulated workers: service times, and kills for `seconds`."""
        rng = Random(f"{seed}/kills")
        kills = ceil(seconds / self.kill_every) if self.kill_every else 0
        return FaultPlan(
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            computing=self.computing,
            slowdowns=self._slowdowns,
            generations=self.generations,
            degradation=(
                Degradation(self.degraded_sets, self.degraded_turn, self.degraded_factor)
                if self.degraded_sets
                else None
            ),
            cold_start=(
                ColdStart(self.cold_factor, self.cold_length) if self.cold_factor != 1 else None
            ),
            coverage=self.coverage,
            kills=tuple(
                Kill(rng.randrange(self.all_instances), self.kill_every * (i + 1))
                for i in range(kills)
            ),
        )

    def drawn_shuffles(self) -> Shuffles | None:
        """Return background transfers as delays, where there are no links."""
        if not self.shuffles:
            return None
        return Shuffles(self.shuffles, self.all_instances, self.transfer, self.delay)

    def contention(self, seed: int, *, links: bool) -> Contention | None:
        """Return the contention made outside of real workers; on the network only if `links`."""
        plan = Contention(
            seed=seed,
            network=self._network if links else None,
            hogs=self._hogs(tuple(sorted(os.sched_getaffinity(0)))) if self.hogs else None,
            pauses=self._pauses,
            tenant=self._tenant if self.tenants else None,
        )
        return None if plan == Contention(seed=seed) else plan

    def links(self, seed: int) -> Links | None:
        """Return the links of simulated runs, to which real ones are shaped."""
        network = self._network
        if network is None or self.all_instances == 1:
            return None
        code = Code(self.code, QUERY_SHAPE, OUTPUT_SHAPE)
        row = {DEPLOYED: 4 * prod(QUERY_SHAPE)}
        row |= dict.fromkeys(map(parity_role, range(self.r)), 4 * prod(code.parity_shape))
        return Links(network, self.all_instances, row, seed)

    def simulated_cores(self, overheads: Overheads) -> Cores | None:
        """Return the cores that models compute on, if they do."""
        if not self.computing:
            return None
        cores = range(self.cores or len(os.sched_getaffinity(0)))
        hogs = [Antagonist(core, self.hog_gap, self.hog_spell) for core in cores] * self.hogs
        return overheads.cores(len(cores), tuple(hogs), pinned=bool(hogs))

    def slow_cores(self) -> Cores:
        """Return the cores of server, client and workers where the processor has a `speed`."""
        quota = SLOWED * self.speed if self.speed < 1 else inf
        return Cores(SLOWED, SERVING, unit=PER_UNIT, waiting=not self.computing, quota=quota)

    @property
    def _network(self) -> Network | None:
        """The links, where there are any."""
        if not self.shuffles and not self.quiet_links:
            return None
        return Network(shuffles=self.shuffles)

    def simulated_faults(self, seed: int, seconds: float, *, links: bool = False) -> FaultPlan:
        """`faults`, and all contention as the plan of a simulated run; the shuffles' too, unless
        there are `links`.

        A hog leaves a unit its share of the core only, so that one takes as much longer; unless
        cores are simulated, as they are with `links`.
        """
        slowdowns, neighbours = self._slowdowns, None
        if self.hogs and not (links and self.computing):
            longer = Constant(self.hogs * mean_of(self.service))
            slowdowns = Slowdowns(self.hog_gap, self.hog_spell, longer)
        if self.tenants:
            workers = Contention(seed=seed, tenant=self._tenant).shared(self.all_instances)
            rate = self.tenant_rate / self.tenants
            neighbours = Neighbours(rate, self.tenant_service, tuple(workers))
        return msgspec.structs.replace(
            self.faults(seed, seconds),
            shuffles=None if links else self.drawn_shuffles(),
            slowdowns=slowdowns,
            neighbours=neighbours,
            pauses=self._pauses,
        )

    @property
    def _pauses(self) -> Pauses | None:
        if not self.pause_every:
            return None
        return Pauses(self.pause_every, self.pause, nodes=self.nodes)

    @property
    def _slowdowns(self) -> Slowdowns | None:
        if not self.slow_every:
            return None
        nothing = Constant(0.0)
        spells = (self.slow_every, self.slow_spell, nothing)
        return Slowdowns(*spells, factor=self.slow_factor, nodes=self.nodes)

    @property
    def _tenant(self) -> Tenant:
        return Tenant(self.tenants, self.tenant_rate, self.tenant_service)

    def _hogs(self, cores: tuple[int, ...]) -> Hogs:
        return Hogs(cores, self.hog_gap, self.hog_spell, self.hogs)


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
        case Empirical(seconds):
            return fmean(seconds)
