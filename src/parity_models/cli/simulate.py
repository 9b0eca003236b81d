"""parm simulate: policies compared at any scale, by the scheduler that serves."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from parity_models.bench.experiment import Setting
from parity_models.bench.trial import Mode, Trial, TrialResult, simulate_trial
from parity_models.cli.json_file import write_json
from parity_models.errors import UserError
from parity_models.faults import LogNormal
from parity_models.scheduling import Source
from parity_models.scheduling.spec import DispatchName, PolicyName, PolicySpec

DEFAULT = (
    PolicyName.EQUAL_RESOURCES,
    PolicyName.HEDGING,
    PolicyName.PARITY,
    PolicyName.ADAPTIVE_PARITY,
)


def simulate(
    policy: Annotated[
        list[PolicyName] | None,
        typer.Option(help="A policy to simulate; may be given several times.", show_default=False),
    ] = None,
    dispatch: Annotated[
        DispatchName | None,
        typer.Option(help="The dispatch rule; by default each policy's own.", show_default=False),
    ] = None,
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
    queries: Annotated[int, typer.Option(help="Queries to simulate.", min=100)] = 100_000,
    warm_up: Annotated[
        int, typer.Option(help="Further queries, before; not counted.", min=0)
    ] = 1000,
    service_time: Annotated[
        float, typer.Option(help="Median service time of a batch, in milliseconds.")
    ] = 25.0,
    spread: Annotated[
        float, typer.Option(help="Standard deviation of the service time's logarithm.")
    ] = 0.05,
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
    try:
        setting = Setting(
            instances=instances,
            k=k,
            r=r,
            decoder=decoder,
            load=load,
            rate=rate,
            max_batch=max_batch,
            service=LogNormal(service_time / 1e3, spread),
            shuffles=round(instances / 3) if shuffles is None else shuffles,
            tenants=tenants,
        )
        setting = msgspec.convert(msgspec.to_builtins(setting), Setting)  # checks the bounds
    except ValueError as error:
        raise UserError(f"this cannot be simulated: {error}") from error
    results = {}
    for name in tqdm(policy or DEFAULT, desc="policies"):
        trial = Trial(
            mode=Mode.SIMULATED,
            setting=setting,
            policy=PolicySpec(name=name, dispatch=dispatch),
            queries=queries,
            warm_up=warm_up,
            seed=seed,
        )
        results[str(name)] = simulate_trial(trial)
    console = Console()
    console.print(
        f"Simulated: {setting.instances:,} + {setting.parity_instances:,} instances, "
        f"{queries:,} queries at {setting.queries_per_second:,.0f}/s, {setting.shuffles:,} "
        f"shuffles. Latencies in ms; work: units run for each query.",
        highlight=False,
    )
    console.print(_table(results))
    if json is not None:
        write_json(json, {"setting": setting, "queries": queries, "policies": results})


def _table(results: dict[str, TrialResult]) -> Table:
    table = Table()
    table.add_column("policy")
    for heading in ("p50", "p99", "p99.9", "gap", "recon-\nstructed", "work", "errors"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        reconstructed = result.share(Source.RECONSTRUCTION)
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (result.p50_ms, result.p99_ms, result.p999_ms, result.gap_ms)),
            f"{reconstructed:.1%}",
            f"{result.work:.2f}",
            f"{result.errors:,}",
        )
    return table
