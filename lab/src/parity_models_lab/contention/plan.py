"""Contention plans: small documents from which the whole course of contention follows.

The contention at time t depends on the plan and t alone, never on the load or on the effects of
the contention. Times are in seconds since the contention began.
"""

import os
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from parity_models.emulation import Constant, Distribution, Duration, Pauses, Spell
from parity_models.errors import ContentionError
from parity_models_lab.contention.transfers import Network


class Hogs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes that take all they can get of a core, in spells.

    Workers are pinned to `cores` in turn, and `each` hogs to each of these. Spells and the times
    between them are exponential; `mean_between` 0 is always busy.
    """

    cores: tuple[Annotated[int, Meta(ge=0)], ...]
    mean_between: Duration
    mean_length: Spell
    each: Annotated[int, Meta(ge=1, le=100)] = 1


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second, lightly loaded deployment of the same model, on the machines of some workers.

    Each of its `instances` shares the link and the accelerator of another worker, drawn at random:
    of two units there, one waits. Its queries are Poisson, `rate` a second; each takes at least
    `service_time`.
    """

    instances: Annotated[int, Meta(ge=1)] = 2
    rate: Annotated[float, Meta(gt=0, le=10_000)] = 15.0
    service_time: Distribution = Constant(0.02)


class Contention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All contention of a run; none by default.

    `pauses` stop a worker's whole process. None is longer than pauses.LONGEST, so that the engine
    does not consider the worker dead.
    """

    seed: int = 0
    network: Network | None = None
    hogs: Hogs | None = None
    pauses: Pauses | None = None
    tenant: Tenant | None = None

    def check(self, workers: int) -> None:
        """Raise ContentionError if this cannot be done to this many workers on this machine."""
        if self.network is not None and self.network.shuffles and workers < 2:
            raise ContentionError("shuffles need two workers or more")
        cores = os.sched_getaffinity(0)
        for core in self.hogs.cores if self.hogs else ():
            if core not in cores:
                raise ContentionError(f"there is no core {core} for a hog: {sorted(cores)} are")
        if self.hogs is not None and not self.hogs.cores:
            raise ContentionError("hogs need cores to be on")
        if self.tenant is not None and self.tenant.instances > workers:
            raise ContentionError(
                f"{self.tenant.instances} instances of the tenant are to be each beside another "
                f"worker, but there are {workers}"
            )
        for worker in (self.pauses and self.pauses.workers) or ():
            if not 0 <= worker < workers:
                raise ContentionError(
                    f"the pauses name worker {worker}, but there are {workers}: they are "
                    f"numbered from 0 to {workers - 1}"
                )

    def shared(self, workers: int) -> list[int]:
        """Return the workers, of so many, that share a machine with another tenant's instances."""
        if self.tenant is None:
            return []
        return sorted(Random(f"{self.seed}/machines").sample(range(workers), self.tenant.instances))
