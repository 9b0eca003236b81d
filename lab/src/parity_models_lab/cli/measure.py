"""What serving costs and withstands: overhead, path, promises, drift, chaos, overload, attack."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from parity_models.cli.flags import argument
from parity_models.models.bundle import open_bundle
from parity_models.options import MINUTES, SECONDS, Option
from parity_models_lab.chaos.server import Engine
from parity_models_lab.drift import measure_drift
from parity_models_lab.overhead import measure_overhead
from parity_models_lab.path import count_path
from parity_models_lab.promises import measure_promises
from parity_models_lab.results import ResultCache, Row, check_out, report

Out = Annotated[Path | None, Option("Write the result to this folder, too.", metavar="DIR")]


def overhead(
    quick: Annotated[bool, Option("Measure briefly; the numbers are rougher.")] = False,
    out: Out = None,
) -> None:
    """Compare the cost of a request with that of Triton, which `make servers` installs.

    Serves generated models on two instances each, with the default policy and without one, and with
    batches of one. Clients send one row at a time over connections that are kept open; servers take
    turns. CPU is the processor time of a request in all the server's processes; the last columns
    are ratios to Triton's.
    """
    rows = uvloop.run(measure_overhead(quick=quick))
    report("The cost of a request", rows, _file(out, "overhead.json"))


def promises(
    bundles: Annotated[
        list[Path], argument("Bundles of one model with different stand-ins.", "BUNDLES")
    ],
    inputs: Annotated[Path, Option("Queries that no stand-in was trained on.", metavar="FILE")],
    agreement: Annotated[float, Option("The level that is named.", metavar="SHARE")] = (0.95),
    queries: Annotated[
        int, Option("Queries that rank, and again as many that calibrate.", at_least=100)
    ] = 1000,
    seeds: Annotated[int, Option("How often these are drawn.", at_least=1)] = 20,
    out: Out = None,
) -> None:
    """Calibrate on some queries, count how often others keep the promised agreement.

    Stand-ins are ranked by other queries than calibrate the best of them, as parm protect does.
    """
    opened = [open_bundle(each) for each in bundles]
    rows = measure_promises(opened, inputs, agreement, queries, seeds)
    report(
        f"Promises kept, {queries:,} queries to calibrate with", rows, _file(out, "promises.json")
    )


def drift(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle with a calibrated backup.", metavar="BUNDLE")
    ],
    inputs: Annotated[
        Path,
        typer.Option(help="Queries that neither trained nor calibrated it.", metavar="FILE"),
    ],
    agreement: Annotated[float, typer.Option(help="The level of the gate.", metavar="SHARE")] = (
        0.99
    ),
    seeds: Annotated[int, typer.Option(help="Streams of queries for each drift.", min=1)] = 20,
    out: Out = None,
) -> None:
    """Count the wrong answers that a gate lets through before the watch closes it.

    Queries drift away from those of the calibration: classes that agree least come more often, or
    inputs become noisy. One stand-in answer in 20 is compared with the model's.
    """
    rows = measure_drift(open_bundle(bundle), inputs, agreement, seeds)
    report("Wrong answers before the gate closes, of 100,000", rows, _file(out, "drift.json"))


def path(out: Out = None) -> None:
    """Count the files and Python calls that one REST request takes in the server's process.

    Serves a generated MLP with the default policy, and counts with the profiler on the event
    loop's thread. Shows the median of requests sent one after the other.
    """
    rows = count_path()
    calls = sum(int(str(row["calls"])) for row in rows)
    title = f"{len(rows)} files and {calls} calls for a request"
    report(title, rows, _file(out, "path.json"))


def late(
    calls: Annotated[int, Option("Calls of each run.", at_least=100)] = 4000,
    seed: Annotated[int, Option("Fixes when calls come and are slow.", at_least=0)] = 0,
    out: Out = None,
) -> None:
    """Compare parity_models.Late with libraries that hedge, over real sockets.

    Four servers with a slot each, two kinds of slowness, three loads. Times in ms. Runs are kept in
    runs/late until the code changes, so what was interrupted goes on where it was.
    """
    from parity_models_lab.late_calls import compare, plot_tails

    kept = ResultCache(Path("runs/late"))
    runs = list(compare(calls, seed, kept, Console(stderr=True, highlight=False).print))
    title = f"Calls to four servers, {calls:,} a run, seed {seed}"
    report(title, [run.row for run in runs], _file(out, "late.json"))
    if out is not None:
        plot_tails(out / "late.png", runs)


def _file(out: Path | None, name: str) -> Path | None:
    return None if out is None else out / name


ChaosOut = Annotated[Path, Option("The folder for results and logs.", metavar="DIR")]
EngineName = Annotated[Engine, Option("What runs the models.")]
Seed = Annotated[int, Option("Fixes the course of events and the load.", at_least=0)]
RESULTS = Path("runs/chaos")


def chaos(
    engine: EngineName = Engine.LOCAL,
    minutes: Annotated[
        float, Option("About how long.", unit=MINUTES, typed="min", at_least=0.01)
    ] = 5.0,
    seed: Seed = 0,
    rate: Annotated[float, Option("Requests a second, of 2.8 queries.", at_least=1)] = 70.0,
    out: ChaosOut = RESULTS,
    events: Annotated[
        str | None,
        Option(
            "Only these, separated by commas; lab/notes/reliability.md lists them.",
            metavar="EVENT,...",
        ),
    ] = None,
) -> None:
    """Serve under load and faults; account for every query.

    A server process of its own, clients over HTTP and gRPC, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed.
    """
    from parity_models_lab.chaos.chaos import run_chaos

    check_out(out)
    rows, queries = asyncio.run(
        run_chaos(
            engine,
            minutes=minutes,
            seed=seed,
            rate=rate,
            folder=out / f"chaos-{engine}",
            events=events.split(",") if events else (),
            tell=Console(stderr=True, highlight=False).print,
        )
    )
    title = f"Chaos on the engine {engine}, seed {seed}"
    report(title, rows, out / f"chaos-{engine}.json", queries=queries)
    ended = sum(int(str(row["queries"])) for row in rows)
    typer.echo(f"{ended:,} of {queries:,} queries are accounted for.")


def overload(
    engine: EngineName = Engine.LOCAL,
    seconds: Annotated[
        float, Option("Of each load, at least.", unit=SECONDS, typed="s", at_least=1)
    ] = 10.0,
    seed: Seed = 0,
    out: ChaosOut = RESULTS,
) -> None:
    """Send 1.2 to 5 times the load that a server can carry.

    Deadlines are from 0.1 to 10 s, with and without clients that give up.
    """
    from parity_models_lab.chaos.overload import run_overload

    async def run() -> list[Row]:
        folder = out / f"overload-{engine}"
        loads = run_overload(engine, folder=folder, seed=seed, seconds=seconds)
        return [row async for row in loads]

    check_out(out)
    rows = asyncio.run(run())
    report(f"Overload on the engine {engine}", rows, out / f"overload-{engine}.json")


def attack(seed: Seed = 0, out: ChaosOut = RESULTS) -> None:
    """Attack other clients' reconstructions by absurd inputs, and by searched ones.

    The bundle's slots are not isolated. Victims' reconstructions are compared with the model's
    predictions, next to honest partners and attackers, with the bundle's envelope and without.
    """
    from parity_models.training import TrainingOptions
    from parity_models_lab.chaos.attack import run_attack
    from parity_models_lab.tasks import find_task

    check_out(out)
    tell = Console(stderr=True, highlight=False).print
    rows = run_attack(find_task("digits"), out / "attack", TrainingOptions(seed=seed), tell)
    report("Agreement of victims' reconstructions with the model", rows, out / "attack.json")
