"""The conditions of one run of a latency experiment, whatever the policy."""

from math import ceil, exp, inf, prod
from random import Random
from statistics import fmean
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.codes import DECODERS, Code, CodeSpec
from parity_models.emulation import (
    Constant,
    Duration,
    FaultPlan,
    Kill,
    LogNormal,
    Neighbours,
    Spell,
)
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models_lab.latency.link import Links

Count = Annotated[int, Meta(ge=1, le=100_000)]

QUERY_SHAPE = (1, 112, 112)
"""The shape of a query, float32: 50 kB. That is to the shaped links what the paper's queries of
some 600 kB are to its own, ten times as fast."""

OUTPUT_SHAPE = (10,)

CORES = 2
"""The cores of a machine with a `speed`."""

TENANT_RATE, TENANT_TIME = 15.0, Constant(0.02)
"""Queries a second of an instance of another tenant, and the time of each."""


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
    instances / k of them, rounded up. The offered load is `rate` in queries per second, or, where
    that is None, `load` as a share of what `instances` alone can carry; with a `burst`, outside of
    bursts. `service` is the emulated time of a batch of up to `max_batch` queries, `backup_service`
    that of a backup. `speed` is the share of two cores' time that the server's processes get
    together, in real runs by a quota; 0: no quota, and simulated servers take no time. The code has
    the `decoder` and its usual encoder. Stand-ins may answer a share `coverage` of the queries.
    `stand_ins` are those that the bundle has for a policy that can use either.

    `shuffles` background transfers run at all times, through the links that queries take. With
    `quiet_links` queries take such links without shuffles. `tenant` instances of another
    deployment, with a light load of its own, share accelerators with ours: of two units there, one
    waits. One instance, drawn at random, is killed every `kill_every` seconds; 0: never. Instance i
    is on node i modulo `nodes`, if any. `faults` are all else that slows workers.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    decoder: str = "separate"
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    burst: Bursts | None = None
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Constant | LogNormal = LogNormal(0.025, 0.05)
    backup_service: Constant | LogNormal = LogNormal(0.0125, 0.05)
    speed: Annotated[float, Meta(ge=0, le=1)] = 0.0
    stand_ins: Annotated[tuple[Literal["parity", "backup"], ...], Meta(min_length=1)] = ("parity",)
    coverage: Annotated[float, Meta(ge=0, le=1)] = 1.0
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    quiet_links: bool = False
    tenant: Annotated[int, Meta(ge=0)] = 0
    kill_every: Duration = 0.0
    nodes: Annotated[int, Meta(ge=0, le=100_000)] = 0
    faults: FaultPlan = FaultPlan()

    def __post_init__(self) -> None:
        if self.tenant > self.all_instances:
            raise ValueError(
                f"{self.tenant} instances of another tenant cannot each share a machine with one "
                f"of {self.all_instances}"
            )
        if self.mean_service <= 0:
            raise ValueError("units take no time: give a service time above 0")

    @property
    def extra_instances(self) -> int:
        return ceil(self.instances / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.extra_instances

    @property
    def code(self) -> Code:
        encoder = "stack" if DECODERS.find(self.decoder).tells_slots else "sum"
        return Code(CodeSpec(encoder, self.decoder, self.k), QUERY_SHAPE, OUTPUT_SHAPE)

    @property
    def mean_service(self) -> float:
        """The mean service time in seconds."""
        match self.service:
            case Constant(seconds):
                return seconds
            case LogNormal(median, sigma):
                return median * exp(sigma**2 / 2)

    @property
    def queries_per_second(self) -> float:
        """The offered load outside of bursts."""
        if self.rate is not None:
            return self.rate
        paces = self.faults.generations or (1.0,)
        share = fmean(1 / paces[each % len(paces)] for each in range(self.instances))
        return self.load * self.instances * self.max_batch * share / self.mean_service

    def arrivals(self, queries: int, seed: int) -> NDArray[np.float64]:
        """Return the times of arrival: (queries,) seconds, in order."""
        return self._in_bursts(poisson_arrivals(self.queries_per_second, queries, seed))

    def _in_bursts(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        return times if self.burst is None else self.burst.compress(times)

    @property
    def linked(self) -> bool:
        """True if instances are behind links."""
        return self.shuffles > 0 or self.quiet_links

    def links(self, seed: int) -> Links | None:
        """Return the links of simulated runs, to which real ones are shaped."""
        if not self.linked:
            return None
        row = {DEPLOYED: 4 * prod(QUERY_SHAPE), parity_role(0): 4 * prod(self.code.parity_shape)}
        return Links(self.shuffles, self.all_instances, row, seed)

    @property
    def quota(self) -> float:
        """The seconds of a core that the server's processes get in a second."""
        return CORES * self.speed if 0 < self.speed < 1 else inf

    def plan(self, seed: int, queries: int, workers: int) -> FaultPlan:
        """Return the faults of real or simulated workers while so many queries arrive."""
        rng, everyone = Random(f"{seed}/kills"), range(self.all_instances)
        seconds = float(self._in_bursts(np.array(queries / self.queries_per_second)))
        number = ceil(seconds / self.kill_every) if self.kill_every else 0
        kills = [Kill(rng.choice(everyone), self.kill_every * (i + 1)) for i in range(number)]
        shared = sorted(Random(f"{seed}/machines").sample(everyone, self.tenant))
        here = tuple(worker for worker in shared if worker < workers)
        return msgspec.structs.replace(
            self.faults,
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            coverage=self.coverage,
            neighbours=Neighbours(TENANT_RATE, TENANT_TIME, here) if here else None,
            kills=tuple(kill for kill in kills if kill.worker < workers),
        )
