"""What is wanted of a service, and the load that it is sized for."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from parity_models.faults import FaultPlan
from parity_models.options import SECONDS, Option, Options
from parity_models.simulation.recording import load_contention

QUERIES = 20_000
"""Queries of one simulation, by default."""


@dataclass(frozen=True, kw_only=True)
class Goal(Options):
    """What is wanted, and what is simulated. Times in seconds.

    Raises UserError for values out of range.
    """

    p50: Annotated[
        float | None, Option("Half of the answers come within this time.", unit=SECONDS, above=0)
    ] = None
    p99: Annotated[
        float | None, Option("99 % of the answers come within this time.", unit=SECONDS, above=0)
    ] = None
    p999: Annotated[
        float | None, Option("99.9 % of the answers come within this time.", unit=SECONDS, above=0)
    ] = None
    spare: Annotated[
        float, Option("The share of the instances' time that is to be spare.", at_least=0, below=1)
    ] = 0.3
    agreement: Annotated[
        float | None,
        Option(
            "The share of stand-ins' answers that are to say what the deployed model says: a level "
            "that the bundle is calibrated for. By default as for parm serve.",
            at_least=0,
            below=1,
            metavar="SHARE",
        ),
    ] = None
    instances: Annotated[
        int | None,
        Option(
            "Instances that there are. By default as few as will do are looked for.",
            at_least=1,
            at_most=1000,
        ),
    ] = None
    max_batch: Annotated[
        int | None,
        Option(
            "Queries that an instance runs at once, as one batch; by default as parm serve has it. "
            "What each adds to a batch's time is measured on this machine.",
            at_least=1,
            at_most=256,
        ),
    ] = None
    rate: Annotated[
        float | None,
        Option("Queries per second. By default those of --recorded.", above=0, at_most=1e6),
    ] = None
    recorded: Annotated[
        str | None,
        Option(
            "A recording of a running server (parm record): its times, arrivals and contention.",
            metavar="FILE",
        ),
    ] = None
    contention: Annotated[
        str | None,
        Option(
            "What slows instances down: a fault plan, or a recording. By default what --recorded "
            "says or, without it, background transfers as in the paper.",
            metavar="FILE",
        ),
    ] = None
    queries: Annotated[
        int, Option("Queries of each simulation.", at_least=1000, at_most=1_000_000)
    ] = QUERIES
    seed: Annotated[int, Option("Fixes arrivals, times and contention.", at_least=0)] = 0

    def limits_ms(self) -> tuple[float, float, float]:
        """What p50, p99 and p99.9 may be at most, in milliseconds."""
        p50, p99, p999 = (
            inf if each is None else 1e3 * each for each in (self.p50, self.p99, self.p999)
        )
        return p50, p99, p999

    def plan(self) -> FaultPlan | None:
        """The contention that was asked for. Raises UserError if the file is none."""
        return None if self.contention is None else load_contention(self.contention)
