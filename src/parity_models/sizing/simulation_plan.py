"""Policies compared in the simulator, under one load and the same disturbances."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import OptionError, UserError
from parity_models.faults import Exponential, LogNormal
from parity_models.load.spec import read_trace
from parity_models.options import SECONDS, Option, Options
from parity_models.scheduling import BACKUPS, SchedulerConfig
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.service_times import read_service_times
from parity_models.simulation.setting import FurtherBackup, Setting, StandInKind, mean_of
from parity_models.simulation.trial import Mode, Trial, TrialResult, simulate_trial

QUERIES = 100_000
LEAST = 100
"""Queries of a simulation: by default, and at least."""


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(Options):
    """What is simulated, whatever the policy. Times in seconds.

    Raises UserError for values out of range.
    """

    instances: Annotated[
        int, Option("Instances of the deployed model.", at_least=1, at_most=100_000)
    ] = 12
    k: Annotated[
        int,
        Option(
            "Queries in a coding group. Every policy except none has instances x r / k further "
            "instances.",
            at_least=2,
            at_most=9,
        ),
    ] = 2
    r: Annotated[int, Option("Parity queries for each group.", at_least=1, at_most=3)] = 1
    load: Annotated[
        float,
        Option(
            "Offered load, as a share of what the instances can carry.",
            above=0,
            at_most=3,
            excludes="arrivals",
        ),
    ] = 0.5
    rate: Annotated[
        float | None,
        Option("Queries per second, in place of --load.", above=0, excludes="load"),
    ] = None
    arrivals: Annotated[
        str | None,
        Option(
            "In place of --load: queries arrive at the times in this file, one number of seconds "
            "per line, in order; the first at once.",
            metavar="FILE",
            excludes="rate",
        ),
    ] = None
    queries: Annotated[
        int | None,
        Option(
            f"Queries to simulate; by default {QUERIES:,}, or all of --arrivals.", at_least=LEAST
        ),
    ] = None
    warm_up_queries: Annotated[int, Option("Further queries, before; not counted.", at_least=0)] = (
        1000
    )
    service_time: Annotated[
        float, Option("Median service time of a batch.", unit=SECONDS, above=0)
    ] = 0.025
    spread: Annotated[
        float, Option("Standard deviation of the service time's logarithm.", at_least=0)
    ] = 0.05
    service_times: Annotated[
        str | None,
        Option(
            "In place of --service-time and its --spread: draw from the measured times in this "
            "file, an .npy array or one number of seconds per line.",
            metavar="FILE",
            excludes="service_time",
        ),
    ] = None
    backup_time: Annotated[
        float | None,
        Option(
            "Median time that a backup takes; by default half of the service time.",
            unit=SECONDS,
            above=0,
        ),
    ] = None
    coverage: Annotated[
        float,
        Option(
            "The share of queries that the gate lets a stand-in answer.",
            at_least=0,
            at_most=1,
            metavar="SHARE",
        ),
    ] = 1.0
    further_backups: Annotated[
        str | None,
        Option(
            "Further backups, each slower and better than the one before: milliseconds and the "
            "share of queries that its gate lets it answer, as 5:0.9,10:0.97.",
            metavar="MS:SHARE,...",
        ),
    ] = None
    max_batch: Annotated[
        int, Option("Queries that an instance runs at once.", at_least=1, at_most=64)
    ] = 1
    cores: Annotated[
        int | None,
        Option(
            "Cores that all instances compute on, each in equal parts for all that computes there; "
            "by default each instance has its own.",
            at_least=1,
            at_most=100_000,
        ),
    ] = None
    serving: Annotated[
        float,
        Option(
            "What server and clients compute for each query, on these --cores.",
            unit=SECONDS,
            at_least=0,
        ),
    ] = 0.0
    shuffles: Annotated[
        int | None,
        Option(
            "Background transfers at all times, each over the links of two instances; by default "
            "one for every three --instances, as in the paper.",
            at_least=0,
        ),
    ] = None
    tenants: Annotated[
        int, Option("Instances of another tenant, each beside one of these.", at_least=0)
    ] = 0
    pause_every: Annotated[
        float,
        Option(
            "Time between pauses of an instance, on average; 0 is never.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = 0.0
    pause: Annotated[
        float,
        Option("How long a pause lasts, on average (exponential).", unit=SECONDS, above=0),
    ] = 0.1
    kill_every: Annotated[
        float,
        Option(
            "How often another instance is killed, to be back 1 s later; 0 is never.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = 0.0
    deadline: Annotated[
        float, Option("How long until a query fails.", unit=SECONDS, typed="s", above=0)
    ] = SchedulerConfig.deadline
    default_prediction: Annotated[
        bool,
        Option("Answer queries with a default at their --deadline, instead of failing them."),
    ] = False
    seed: Annotated[int, Option("Fixes arrivals, service times, disturbances.", at_least=0)] = 0


@dataclass(frozen=True)
class SimulationPlan:
    """A setting, and so many `queries` after `warm_up` others that meet it.

    They arrive at the times `arrivals` (warm_up + queries,) in seconds; Poisson without them.
    """

    setting: Setting
    config: SchedulerConfig
    queries: int
    warm_up: int
    seed: int
    arrivals: NDArray[np.float64] | None
    serving: float = 0.0

    def run(self, choices: Iterable[PolicyChoice]) -> Iterator[tuple[str, TrialResult]]:
        """What comes of each policy, with its name. Raises UserError if no query is answered."""
        for choice in choices:
            trial = Trial(
                mode=Mode.SIMULATED,
                setting=self.setting,
                policy=choice,
                queries=self.queries,
                warm_up=self.warm_up,
                seed=self.seed,
                serving_ms=1e3 * self.serving,
            )
            yield choice.name, simulate_trial(trial, self.arrivals, self.config)


def plan_simulation(
    options: SimulationOptions, stand_ins: tuple[StandInKind, ...], code: Mapping[str, Any]
) -> SimulationPlan:
    """What `options` ask for, of bundles with these `stand_ins`.

    `code` has the fields of a Setting that say what code there is. Raises UserError for what cannot
    be simulated, and files that cannot be read.
    """
    if options.serving and options.cores is None:
        raise OptionError(
            lambda spell: (
                f"{spell('serving')} is computed on {spell('cores')}: say how many there are"
            )
        )
    arrivals, queries, rate = None, options.queries or QUERIES, options.rate
    if options.arrivals is not None:
        arrivals = _arrivals(options.arrivals, options.queries, options.warm_up_queries)
        queries = len(arrivals) - options.warm_up_queries
        rate = float(len(arrivals) / arrivals[-1])
    try:
        setting = _setting(options, rate, stand_ins, code)
        setting = msgspec.convert(msgspec.to_builtins(setting), Setting)  # checks the bounds
    except ValueError as error:
        raise UserError(f"this cannot be simulated: {error}") from error
    config = SchedulerConfig(
        max_batch=options.max_batch,
        deadline=options.deadline,
        default_prediction=options.default_prediction,
    )
    return SimulationPlan(
        setting, config, queries, options.warm_up_queries, options.seed, arrivals, options.serving
    )


def _further_backups(text: str | None, spread: float) -> tuple[FurtherBackup, ...]:
    """Those of MS:SHARE,... Raises UserError for anything else."""
    found = []
    for each in () if text is None else text.split(","):
        ms, colon, share = each.partition(":")
        try:
            seconds, coverage = float(ms) / 1e3, float(share)
        except ValueError:
            seconds, coverage = 0.0, 0.0
        if not (colon and 0 < seconds < inf and 0 <= coverage <= 1):
            raise _no_backup(each)
        found.append(FurtherBackup(LogNormal(seconds, spread), coverage))
    if len(found) >= len(BACKUPS):
        raise OptionError(
            lambda spell: (
                f"a bundle has {len(BACKUPS)} backups at most; {spell('further_backups')} names "
                f"{len(found)} besides the first"
            )
        )
    return tuple(found)


def _no_backup(text: str) -> OptionError:
    return OptionError(
        lambda spell: (
            f"{spell('further_backups')} takes MS:SHARE,... as 5:0.9,10:0.97, with times above 0 "
            f"and shares from 0 to 1, not {text!r}"
        )
    )


def _setting(
    options: SimulationOptions,
    rate: float | None,
    stand_ins: tuple[StandInKind, ...],
    code: Mapping[str, Any],
) -> Setting:
    service = (
        LogNormal(options.service_time, options.spread)
        if options.service_times is None
        else read_service_times(Path(options.service_times))
    )
    backup_time = options.backup_time
    return Setting(
        instances=options.instances,
        k=options.k,
        r=options.r,
        **code,
        load=options.load,
        rate=rate,
        max_batch=options.max_batch,
        computing=options.cores is not None,
        cores=options.cores or 0,
        service=service,
        stand_ins=stand_ins,
        backup_service=LogNormal(
            mean_of(service) / 2 if backup_time is None else backup_time, options.spread
        ),
        coverage=options.coverage,
        further_backups=_further_backups(options.further_backups, options.spread),
        shuffles=round(options.instances / 3) if options.shuffles is None else options.shuffles,
        tenants=options.tenants,
        pause_every=options.pause_every,
        pause=Exponential(options.pause),
        kill_every=options.kill_every,
    )


def _arrivals(path: str, queries: int | None, warm_up: int) -> NDArray[np.float64]:
    """The times (n,) in the file, or those for so many `queries` after `warm_up` others."""
    times = read_trace(path)
    wanted = warm_up + (queries or LEAST)
    if len(times) < wanted:
        raise UserError(
            f"{path} has {len(times):,} times, too few for {wanted:,} queries, the {warm_up:,} of "
            "the warm-up included"
        )
    times = times if queries is None else times[:wanted]
    if not times[-1]:
        raise UserError(f"all times of {path} are the same, so there is no rate of arrivals")
    return times
