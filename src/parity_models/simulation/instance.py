"""Imagined instances, and what is under way on them."""

from dataclasses import dataclass
from math import inf

from parity_models.faults import WorkerFaults
from parity_models.scheduling import Run
from parity_models.simulation.cores import Job
from parity_models.simulation.link import Link


class Instance:
    """An imagined instance: number `slot` of the plan, in its `life`-th incarnation."""

    def __init__(
        self, slot: int, roles: frozenset[str], faults: WorkerFaults | None, link: Link | None
    ) -> None:
        self.slot = slot
        self.roles = roles
        self.faults = faults
        self.link = link
        self.life = 0

    @property
    def name(self) -> str:
        return f"{self.slot}.{self.life}" if self.life else f"{self.slot}"


@dataclass(slots=True)
class Running:
    """A unit on its way to an instance, or there.

    It was `sent` at a time; its input is `there`, and it `ends`, which is not known as long as it
    computes on a core that others may come to (`job`). It is `over` once the instance has ended it.
    """

    run: Run
    instance: Instance
    counted: bool
    sent: float
    there: float = inf
    ends: float = inf
    job: Job | None = None
    over: bool = False
