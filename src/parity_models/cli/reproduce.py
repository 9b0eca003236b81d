"""parm reproduce: the paper's figures, and ours beyond them."""

import shlex
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from parity_models.cli.report_file import check_report
from parity_models.cli.reproduce_accuracy import accuracy
from parity_models.cli.reproduce_engines import engines
from parity_models.errors import ContentionError, UserError
from parity_models.lab.contention.namespaces import check_privileges
from parity_models.lab.latency.experiment import experiment_names, figures_of, load_experiment
from parity_models.lab.latency.real_trial import Laboratory
from parity_models.lab.latency.report import Compared, emulated, write_report, write_validation
from parity_models.lab.latency.reproduce_latency import (
    PRESETS,
    Plan,
    collect,
    draw,
    expected_seconds,
    missing,
    run_trials,
)
from parity_models.lab.latency.trial import Emulation, Mode, Trial, calm_trial, outside_ms
from parity_models.lab.latency.trial_cache import TrialCache

reproduce = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@reproduce.callback()
def _reproduce() -> None:
    """Reproduce the paper's figures, and ours beyond them."""


reproduce.command()(accuracy)
reproduce.command()(engines)


@reproduce.command()
def latency(
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(experiment_names())}, an experiment file of yours, or all "
            "(but hedging and million, which take long); may be given several times.",
            metavar="FIGURE",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"How much is run: {' or '.join(PRESETS)}.")
    ] = "quick",
    out: Annotated[
        Path, typer.Option(help="The report to write; its pictures go into a folder beside it.")
    ] = Path("docs/results/latency.md"),
    work: Annotated[
        Path, typer.Option(help="The folder for results and bundles, used again next time.")
    ] = Path("runs/latency"),
    network: Annotated[
        str | None,
        typer.Option(
            help="Background shuffles in real runs: shaped (network namespaces and real "
            "transfers; needs root and iproute2), emulated (drawn delays), or none (simulate "
            "only). By default shaped where that can be, else emulated.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, contention.", min=0)
    ] = 0,
) -> None:
    """Run the latency figures, for real at this machine's scale and simulated at the paper's.

    Every policy of a point meets the same arrivals and the same contention. Writes a report with
    tables and pictures. What was run before is not run again: an interrupted run goes on.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    check_report(out)
    shuffles = _network(network)
    plans = [
        Plan(name, load_experiment(name), PRESETS[preset], seed, shuffles)
        for name in figures_of(list(figure or ["all"]))
    ]
    cache = TrialCache(work / "trials")
    _run([trial for plan in plans for trial in plan.all_trials()], cache, work)
    results = [collect(plan, cache) for plan in plans]
    for result in results:
        draw(result, out.with_suffix("") / f"{result.plan.name}.png", emulated(result.plan))
    write_report(out, results, _command())
    Console().print(f"Wrote {out} and {len(results)} pictures beside it.", highlight=False)


@reproduce.command()
def validation(
    figure: Annotated[
        str, typer.Option(help="The experiment whose policies are run.", metavar="FIGURE")
    ] = "9a",
    point: Annotated[int, typer.Option(help="The position on its axis, from 0.", min=0)] = 4,
    queries: Annotated[int, typer.Option(help="Queries of each run.", min=100)] = 20_000,
    out: Annotated[Path, typer.Option(help="The report to write.")] = Path(
        "docs/results/validation.md"
    ),
    work: Annotated[
        Path, typer.Option(help="The folder for results and bundles, used again next time.")
    ] = Path("runs/latency"),
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, contention.", min=0)
    ] = 0,
) -> None:
    """Run each policy of a figure for real and simulated, and say how far apart they are.

    Contention is drawn in both, so that both meet the very same course of disturbances. What the
    real system adds to queue and service time is measured first.
    """
    check_report(out)
    experiment = load_experiment(figure)
    if point >= len(experiment.points):
        raise UserError(
            f"{figure} has {len(experiment.points)} points; the last is number "
            f"{len(experiment.points) - 1}"
        )
    cache = TrialCache(work / "trials")
    real = [
        Trial(
            mode=Mode.REAL,
            setting=experiment.at(point, series),
            policy=series.choice,
            queries=queries,
            warm_up=500,
            seed=seed,
            network=Emulation.EVERYTHING,
        )
        for series in experiment.series
    ]
    calm = calm_trial(real[0])
    _run([calm, *real], cache, work)
    outside = outside_ms(cache[calm])
    simulated = [
        msgspec.structs.replace(trial, mode=Mode.SIMULATED, outside_ms=outside) for trial in real
    ]
    _run(simulated, cache, work)
    compared = [
        Compared(series.label, cache[trial], cache[imagined])
        for series, trial, imagined in zip(experiment.series, real, simulated, strict=True)
    ]
    write_validation(out, real[0], outside, compared, _command())
    Console().print(f"Wrote {out}.", highlight=False)


def _run(trials: Sequence[Trial], cache: TrialCache, work: Path) -> None:
    """Run what the cache does not hold, once it is said how long that takes."""
    if to_run := missing(trials, cache):
        real = sum(trial.mode is Mode.REAL for trial in to_run)
        minutes = ceil(expected_seconds(to_run) / 60)
        Console(stderr=True).print(
            f"{real} real and {len(to_run) - real} simulated runs: about {minutes} min. Interrupt "
            "it at any time; the same command goes on where it stopped.",
            highlight=False,
        )
        run_trials(to_run, cache, Laboratory(work / "bundles").run)


def _command() -> str:
    return shlex.join(["parm", *sys.argv[1:]])


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
