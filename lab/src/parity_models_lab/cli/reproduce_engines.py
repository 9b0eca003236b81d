"""parm-lab reproduce engines: one experiment on every engine."""

from dataclasses import replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console

from parity_models.serving.engines import ENGINES, EngineChoice
from parity_models.simulation.trial import Emulation, Mode
from parity_models_lab.cli.report_file import check_report, typed_command
from parity_models_lab.latency.engines import choose_engines
from parity_models_lab.latency.engines_report import write_engines
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.real_trial import Laboratory
from parity_models_lab.latency.reproduce_latency import (
    PRESETS,
    Plan,
    collect,
    expected_seconds,
    missing,
    run_trials,
)
from parity_models_lab.latency.trial_cache import TrialCache

_HAS_RAY = find_spec("ray") is not None


def engines(
    figure: Annotated[
        str,
        typer.Option(
            help="The experiment: one of `parm-lab reproduce latency`, or a file.", metavar="FIGURE"
        ),
    ] = "engines",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help=f"An engine to run it on: {', '.join(ENGINES.names)}, or your own as "
            "package.module:Class, with its options after it as @OPTION=VALUE,...; may be given "
            "several times. By default those that the experiment names, or all that are installed.",
            metavar="ENGINE",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The report to write; its picture goes into a folder beside it.", metavar="FILE"
        ),
    ] = Path("lab/results/engines.md"),
    work: Annotated[
        Path,
        typer.Option(
            help="The folder for results and bundles, used again next time.", metavar="DIR"
        ),
    ] = Path("runs/engines"),
    seed: Annotated[
        int, typer.Option(help="Fixes arrivals, service times, contention.", min=0)
    ] = 0,
) -> None:
    """Compare the engines by an experiment's real runs.

    Each engine runs the same file. Accelerators and contention are emulated in the instances,
    whatever the engine. What was run before is not run again: an interrupted run goes on.
    """
    experiment = load_experiment(figure)
    named = [EngineChoice(*ENGINES.read(text)) for text in engine or ()]
    chosen = choose_engines(named or experiment.chosen_engines, has_ray=_HAS_RAY)
    check_report(out)
    plan = Plan(figure, experiment, PRESETS["quick"], seed, Emulation.EVERYTHING)
    laboratory = Laboratory(work / "bundles")
    simulated = TrialCache(work / "trials")
    run_trials(plan.tuning_trials(), simulated, laboratory.run)
    plan = plan.tuned(simulated)
    trials = [trial for trial in plan.all_trials() if trial.mode is Mode.REAL]
    results = {}
    for name, each in chosen.items():
        cache = TrialCache(work / "trials" / quote(name, safe=""))
        if to_run := missing(trials, cache):
            minutes = ceil(expected_seconds(to_run) / 60)
            Console(stderr=True, highlight=False).print(
                f"{name}: {len(to_run)} runs, about {minutes} min.", highlight=False
            )
            run_trials(to_run, cache, replace(laboratory, engine=each).run)
        results[name] = collect(plan, cache)
    write_engines(out, results, typed_command())
    Console(highlight=False).print(f"Wrote {out} and its picture.")
