"""The options of simulations: a workload on a cluster, a service, and a goal."""

from dataclasses import dataclass, replace
from typing import Annotated

from parity_models.options import SECONDS, SHARE, Option, Options

INSTANCES = 12
"""The default number of simulated instances."""


DIFFER = Option(
    "The share of all answers that may differ from the model's: chooses policy and gate, a cascade "
    "among them.",
    above=0,
    below=1,
    unit=SHARE,
)


@dataclass(frozen=True, kw_only=True)
class Scenario(Options):
    """The queries that arrive in simulations, and the instances that serve them."""

    load: Annotated[
        float,
        Option(
            "Offered load, as a share of what the instances can carry one query at a time.",
            above=0,
            at_most=3,
        ),
    ] = 0.5
    rate: Annotated[
        float | None,
        Option("Queries per second, in place of a load.", above=0, at_most=1e6, excludes="load"),
    ] = None
    queries: Annotated[
        int | None,
        Option("Queries of each simulation.", at_least=1000, at_most=10_000_000),
    ] = None
    seed: Annotated[int, Option("Fixes all that is random.", at_least=0, at_most=2**32 - 1)] = 0
    instances: Annotated[int | None, Option("Instances in all.", at_least=1, at_most=100_000)] = (
        None
    )
    contention: Annotated[
        str | None,
        Option(
            "A fault plan: the slowness that instances meet. By default background transfers, as "
            "in the paper, in units of the model's time.",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(Scenario):
    """The options of a comparison of policies: a scenario, and a service without a bundle.

    Times in seconds.
    """

    service_time: Annotated[
        float | None,
        Option(
            "Median time of the model for a query, in place of a bundle's.", unit=SECONDS, above=0
        ),
    ] = None
    backup_time: Annotated[
        float | None,
        Option(
            "Median time of a backup, without a bundle; by default there is none.",
            unit=SECONDS,
            above=0,
        ),
    ] = None
    coverage: Annotated[
        float,
        Option(
            "The share of queries that stand-ins may answer, without a bundle.",
            at_least=0,
            at_most=1,
            unit=SHARE,
        ),
    ] = 1.0
    max_batch: Annotated[
        int | None,
        Option(
            "Queries that wait and are run at once, as one batch, at most; by default as parm "
            "serve has it: 4 where the model runs these in the time of two or less, else 1.",
            at_least=1,
            at_most=1024,
        ),
    ] = None
    agreement: Annotated[
        float | None,
        Option(
            "Minimum calibrated agreement with the model for stand-in answers: a level that the "
            "bundle is calibrated for. By default as for parm serve.",
            at_least=0,
            below=1,
            unit=SHARE,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Goal(SimulationOptions):
    """The tail that a service is sized for, and the options of its simulation. Times in seconds."""

    p99: Annotated[
        float | None, Option("99 % of the answers come within this time.", unit=SECONDS, above=0)
    ] = None
    p999: Annotated[
        float | None, Option("99.9 % of the answers come within this time.", unit=SECONDS, above=0)
    ] = None
    differ: Annotated[float | None, replace(DIFFER, excludes="agreement")] = None
    headroom: Annotated[
        float,
        Option(
            "The share of the instances' time that is to stay idle.",
            unit=SHARE,
            at_least=0,
            below=1,
        ),
    ] = 0.3
