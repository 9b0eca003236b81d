"""parm simulate: policies compared at any scale, by the scheduler that serves."""

from math import inf
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from parity_models.cli.duration import Duration
from parity_models.cli.json_file import write_json
from parity_models.cli.policy import (
    DispatchName,
    PolicyCommand,
    check_policy,
    choose_policies,
    given_options,
)
from parity_models.errors import UserError
from parity_models.faults import Exponential, LogNormal
from parity_models.lab.latency.experiment import Setting
from parity_models.lab.latency.trial import Mode, Trial, TrialResult, simulate_trial
from parity_models.load.trace import read_trace
from parity_models.scheduling import SchedulerConfig, Source
from parity_models.scheduling.policies import (
    POLICIES,
    AdaptiveParity,
    EqualResources,
    Hedging,
    Parity,
)
from parity_models.simulation.service_times import read_service_times

DEFAULT = (EqualResources.name, Hedging.name, Parity.name, AdaptiveParity.name)
QUERIES = 100_000


COMMAND = PolicyCommand


def simulate(
    context: typer.Context,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy to simulate; may be given several times. One of "
            f"{', '.join(POLICIES.names)}, or your own as package.module:Class.",
            metavar="POLICY",
            show_default=False,
            callback=check_policy,
        ),
    ] = None,
    dispatch: DispatchName = None,
    instances: Annotated[int, typer.Option(help="Instances of the deployed model.")] = 12,
    k: Annotated[
        int,
        typer.Option("--k", help="Queries in a coding group; all policies but none have r/k more."),
    ] = 2,
    r: Annotated[int, typer.Option("--r", help="Parity queries for each group.")] = 1,
    decoder: Annotated[str, typer.Option(help="subtraction or separate.")] = "separate",
    load: Annotated[
        float,
        typer.Option(help="Offered load, as a share of what the instances can carry."),
    ] = 0.5,
    rate: Annotated[
        float | None,
        typer.Option(help="Queries per second, in place of --load.", show_default=False),
    ] = None,
    arrivals: Annotated[
        Path | None,
        typer.Option(
            help="In place of --load: queries arrive at the times in this file, one number of "
            "seconds per line, in order; the first at once.",
            metavar="FILE",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            help=f"Queries to simulate; by default {QUERIES:,}, or all of --arrivals.",
            min=100,
            show_default=False,
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option(help="Further queries, before; not counted.", min=0)
    ] = 1000,
    service_time: Annotated[
        float,
        typer.Option(
            help="Median service time of a batch.", parser=Duration("ms"), metavar="MILLISECONDS"
        ),
    ] = 25.0,
    spread: Annotated[
        float, typer.Option(help="Standard deviation of the service time's logarithm.")
    ] = 0.05,
    service_times: Annotated[
        Path | None,
        typer.Option(
            help="In place of --service-time and --spread: draw from the measured times in this "
            "file, an .npy array or one number of seconds per line.",
            metavar="FILE",
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Queries that an instance runs at once.")] = 1,
    shuffles: Annotated[
        int | None,
        typer.Option(
            help="Background transfers at all times, each slowing two instances; by default one "
            "for every three --instances, as in the paper.",
            show_default=False,
        ),
    ] = None,
    tenants: Annotated[
        int, typer.Option(help="Instances of another tenant, each beside one of these.")
    ] = 0,
    pause_every: Annotated[
        float,
        typer.Option(
            help="Time between pauses of an instance, on average; 0 is never.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = 0.0,
    pause: Annotated[
        float,
        typer.Option(
            help="How long a pause lasts, on average (exponential).",
            parser=Duration("ms"),
            metavar="MILLISECONDS",
        ),
    ] = 100.0,
    kill_every: Annotated[
        float,
        typer.Option(
            help="How often another instance is killed, to be back 1 s later; 0 is never.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = 0.0,
    deadline: Annotated[
        float,
        typer.Option(help="How long until a query fails.", parser=Duration("s"), metavar="SECONDS"),
    ] = SchedulerConfig.deadline,
    default_prediction: Annotated[
        bool,
        typer.Option(
            "--default-prediction",
            help="Answer queries with a default at their --deadline, instead of failing them.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, disturbances.", min=0)
    ] = 0,
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
    ] = None,
) -> None:
    """Simulate policies under one load and the same disturbances.

    Drives the scheduler that serves with imagined instances, so that 10,000 of them and a million
    queries take a minute or two for each policy. All but none have the same number of instances.
    """
    names = list(dict.fromkeys(policy or DEFAULT))
    choices = choose_policies(names, given_options(context), dispatch)
    times = None
    if arrivals is not None:
        if rate is not None:
            raise UserError("give --rate or --arrivals, not both")
        times = _arrivals(arrivals, queries, warm_up)
        queries = len(times) - warm_up
        rate = float(len(times) / times[-1])
    queries = queries or QUERIES
    if not 0 < deadline < inf:
        raise UserError(f"--deadline is a number of seconds above 0, not {deadline}")
    try:
        setting = Setting(
            instances=instances,
            k=k,
            r=r,
            decoder=decoder,
            load=load,
            rate=rate,
            max_batch=max_batch,
            service=(
                LogNormal(service_time / 1e3, spread)
                if service_times is None
                else read_service_times(service_times)
            ),
            shuffles=round(instances / 3) if shuffles is None else shuffles,
            tenants=tenants,
            pause_every=pause_every,
            pause=Exponential(pause / 1e3),
            kill_every=kill_every,
        )
        setting = msgspec.convert(msgspec.to_builtins(setting), Setting)  # checks the bounds
    except ValueError as error:
        raise UserError(f"this cannot be simulated: {error}") from error
    config = SchedulerConfig(
        max_batch=max_batch, deadline=deadline, default_prediction=default_prediction
    )
    results = {}
    for choice in tqdm(choices, desc="policies"):
        trial = Trial(
            mode=Mode.SIMULATED,
            setting=setting,
            policy=choice,
            queries=queries,
            warm_up=warm_up,
            seed=seed,
        )
        results[choice.name] = simulate_trial(trial, times, config)
    console = Console()
    console.print(
        f"Simulated: {setting.instances:,} + {setting.parity_instances:,} instances, "
        f"{queries:,} queries at {setting.queries_per_second:,.0f}/s, {setting.shuffles:,} "
        f"shuffles. Latencies in ms; work: units run for each query.",
        highlight=False,
    )
    console.print(_table(results))
    if json is not None:
        options = [choice.written_out() for choice in choices]
        write_json(
            json,
            {"setting": setting, "queries": queries, "options": options, "policies": results},
        )


def _arrivals(path: Path, queries: int | None, warm_up: int) -> NDArray[np.float64]:
    """The times (n,) in the file, or those for so many `queries` after `warm_up` others."""
    times = read_trace(str(path))
    wanted = warm_up + (queries or 100)
    if len(times) < wanted:
        raise UserError(
            f"{path} has {len(times):,} times, too few for {wanted:,} queries, the {warm_up:,} of "
            "--warm-up included"
        )
    times = times if queries is None else times[:wanted]
    if not times[-1]:
        raise UserError(f"all times of {path} are the same, so there is no rate of arrivals")
    return times


def _table(results: dict[str, TrialResult]) -> Table:
    table = Table()
    table.add_column("policy")
    defaults = any(result.share(Source.DEFAULT) for result in results.values())
    for heading in ("p50", "p99", "p99.9", "gap", "recon-\nstructed", "work", "errors"):
        table.add_column(heading, justify="right")
    if defaults:
        table.add_column("defaults", justify="right")
    for name, result in results.items():
        reconstructed = result.share(Source.RECONSTRUCTION)
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (result.p50_ms, result.p99_ms, result.p999_ms, result.gap_ms)),
            f"{reconstructed:.1%}",
            f"{result.work:.2f}",
            f"{result.errors:,}",
            *((f"{result.share(Source.DEFAULT):.1%}",) if defaults else ()),
        )
    return table
