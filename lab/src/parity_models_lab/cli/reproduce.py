"""parm-lab reproduce: the paper's figures, and ours beyond them."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.errors import ContentionError, UserError
from parity_models.simulation.trial import Emulation, Mode, Trial
from parity_models_lab.cli.report_file import check_report, typed_command
from parity_models_lab.cli.reproduce_accuracy import accuracy
from parity_models_lab.cli.reproduce_engines import engines
from parity_models_lab.cli.reproduce_protect import protect
from parity_models_lab.cli.reproduce_real import real
from parity_models_lab.contention.namespaces import check_privileges
from parity_models_lab.latency.experiment import experiment_names, figures_of, load_experiment
from parity_models_lab.latency.latency_report import emulated, write_report
from parity_models_lab.latency.real_trial import Laboratory
from parity_models_lab.latency.reproduce_latency import (
    PRESETS,
    Plan,
    collect,
    draw,
    expected_seconds,
    missing,
    run_trials,
)
from parity_models_lab.latency.trial_cache import TrialCache
from parity_models_lab.latency.validation import compare, write_validation

reproduce = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@reproduce.callback()
def _reproduce() -> None:
    """Reproduce the paper's figures, and ours beyond them."""


WorkFolder = Annotated[
    Path,
    typer.Option(help="The folder for results and bundles, used again next time.", metavar="DIR"),
]


reproduce.command()(accuracy)
reproduce.command()(engines)
reproduce.command()(real)
reproduce.command()(protect)


@reproduce.command()
def latency(
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(experiment_names())}, an experiment file of yours, or all "
            "(but those that take long); may be given several times.",
            metavar="FIGURE",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="How much is run.", metavar=f"[{'|'.join(PRESETS)}]")
    ] = "quick",
    out: Annotated[
        Path,
        typer.Option(
            help="The report to write; its pictures go into a folder beside it.", metavar="FILE"
        ),
    ] = Path("lab/results/latency.md"),
    work: WorkFolder = Path("runs/latency"),
    network: Annotated[
        str | None,
        typer.Option(
            help="Background shuffles in real runs: shaped (network namespaces and real "
            "transfers; needs root and iproute2), emulated (drawn delays), or none (simulate "
            "only). By default shaped where that can be, else emulated.",
            metavar="[shaped|emulated|none]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, contention.", min=0)
    ] = 0,
) -> None:
    """Run the latency figures, for real and simulated.

    Real runs have this machine's scale, simulated ones the paper's. Every policy of a point meets
    the same arrivals and the same contention. Writes a report with tables and pictures. What was
    run before is not run again: an interrupted run goes on.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    shuffles = _network(network)
    plans = [
        Plan(name, load_experiment(name), PRESETS[preset], seed, shuffles)
        for name in figures_of(list(figure or ["all"]))
    ]
    check_report(out)
    cache = TrialCache(work / "trials")
    tuning = [trial for plan in plans for trial in plan.tuning_trials()]
    _say_how_long([*tuning, *(trial for plan in plans for trial in plan.all_trials())], cache)
    laboratory = Laboratory(work / "bundles")
    run_trials(tuning, cache, laboratory.run)
    plans = [plan.tuned(cache) for plan in plans]
    run_trials([trial for plan in plans for trial in plan.all_trials()], cache, laboratory.run)
    results = [collect(plan, cache) for plan in plans]
    for result in results:
        draw(result, out.with_suffix("") / f"{result.plan.name}.png", emulated(result.plan))
    write_report(out, results, typed_command())
    Console(highlight=False).print(f"Wrote {out} and {len(results)} pictures beside it.")


@reproduce.command()
def validation(
    figure: Annotated[
        str, typer.Option(help="The experiment whose policies are run.", metavar="FIGURE")
    ] = "validation",
    point: Annotated[
        list[int] | None,
        typer.Option(
            help="A position on its axis, from 0; may be given several times. By default all.",
            min=0,
            show_default=False,
        ),
    ] = None,
    queries: Annotated[int, typer.Option(help="Queries of each run.", min=100)] = 20_000,
    network: Annotated[
        str | None,
        typer.Option(
            help="Contention in real runs: shaped (all of it real, shuffles through shaped links; "
            "needs root and iproute2) or drawn (by workers, as simulated). By default shaped where "
            "that can be.",
            metavar="[shaped|drawn]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The report to write.", metavar="FILE")] = Path(
        "lab/results/validation.md"
    ),
    work: WorkFolder = Path("runs/latency"),
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, contention.", min=0)
    ] = 0,
) -> None:
    """Compare the simulator with real runs, policy by policy.

    What the real system adds to queue and service time is measured first.
    """
    experiment = load_experiment(figure)
    check_report(out)
    points = list(range(len(experiment.points))) if point is None else point
    if max(points) >= len(experiment.points):
        raise UserError(
            f"{figure} has {len(experiment.points)} points; the last is number "
            f"{len(experiment.points) - 1}"
        )
    known = {"shaped": Emulation.NOTHING, "drawn": Emulation.EVERYTHING}
    if network is not None and network not in known:
        raise UserError(f"--network is {', '.join(known)}, not {network!r}")
    if network is None:
        network = "shaped" if _network(None) is Emulation.NOTHING else "drawn"
    cache = TrialCache(work / "trials")

    def run(trials: Sequence[Trial]) -> None:
        _run(trials, cache, work)

    plan = Plan(figure, experiment, PRESETS["quick"], seed, known[network])
    compared = compare(plan, points, queries, run, cache)
    write_validation(out, compared, known[network], queries, typed_command())
    Console(highlight=False).print(f"Wrote {out}.")


def _run(trials: Sequence[Trial], cache: TrialCache, work: Path) -> None:
    _say_how_long(trials, cache)
    run_trials(trials, cache, Laboratory(work / "bundles").run)


def _say_how_long(trials: Sequence[Trial], cache: TrialCache) -> None:
    """Say how long it takes to run what the cache does not hold."""
    if to_run := missing(trials, cache):
        real = sum(trial.mode is Mode.REAL for trial in to_run)
        minutes = ceil(expected_seconds(to_run) / 60)
        Console(stderr=True, highlight=False).print(
            f"{real} real and {len(to_run) - real} simulated runs: about {minutes} min. Interrupt "
            "it at any time; the same command goes on where it stopped.",
        )


def _network(name: str | None) -> Emulation | None:
    known = {"shaped": Emulation.NOTHING, "emulated": Emulation.SHUFFLES, "none": None}
    if name is None:
        try:
            check_privileges()
        except ContentionError:
            return Emulation.SHUFFLES
        return Emulation.NOTHING
    if name not in known:
        raise UserError(f"--network is {', '.join(known)}, not {name!r}")
    return known[name]
