"""The runs of a latency figure."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, get_args

import msgspec

from parity_models.options import Option
from parity_models.progress import Progress, progress_bars
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.figure import Figure, Series
from parity_models_lab.latency.real_trial import run_real
from parity_models_lab.latency.trial import Mode, Trial, TrialResult, simulate_trial
from parity_models_lab.results import ResultCache, code_digest, simulated

Out = Annotated[Path, Option("The folder to write results and pictures to.", metavar="DIR")]
Work = Annotated[Path, Option("The folder for what was run, used again.", metavar="DIR")]
Seed = Annotated[int, Option("Fixes arrivals, service times, contention.", at_least=0)]

TUNING = 50_000
"""Queries of a simulation by which options are chosen, at most."""


class Trials:
    """Runs trials; keeps the results of this code, and the bundles served, in a folder."""

    def __init__(self, work: Path) -> None:
        self._cache, self._bundles = ResultCache(work / "trials"), work / "bundles"

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Return the results, after running those without: the simulated on all cores, then the
        real in turn."""
        keys = [f"{trial.key}-{code_digest()}" for trial in trials]
        found = {
            key: result for key in keys if (result := self._cache.get(key, TrialResult)) is not None
        }
        to_run = {key: t for key, t in zip(keys, trials, strict=True) if key not in found}
        imagined = [(key, t) for key, t in to_run.items() if t.mode == "simulated"]
        for (key, _), result in simulated(_simulate, imagined):
            self._cache.put(key, result)
            found[key] = result
        real = [(key, t) for key, t in to_run.items() if t.mode == "real"]
        with progress_bars() as bars:
            for done, (key, trial) in enumerate(real):
                bars.on_progress(Progress("real", done, len(real)))
                found[key] = run_real(trial, self._bundles)
                self._cache.put(key, found[key])
        return [found[key] for key in keys]


def _simulate(keyed: tuple[str, Trial]) -> TrialResult:
    return simulate_trial(keyed[1])


@dataclass(frozen=True)
class Cell:
    """A run of a series at a point; `label` names the series, with its tuned options there."""

    series: Series
    label: str
    point: int
    trial: Trial
    result: TrialResult


def run_figure(
    figure: Figure, trials: Trials, seed: int, *, real: Collection[int], speed: float = 0.0
) -> list[Cell]:
    """Run a figure, simulated at all its points, and for real at those in `real`.

    A tuned series has the options with which simulations are best at a point; options with which
    queries fail are worse than all others.
    """
    points = range(len(figure.points))

    def trial(
        mode: Mode, series: Series, point: int, policy: PolicyChoice, most: int = sys.maxsize
    ) -> Trial:
        queries = figure.real_queries if mode == "real" else figure.simulated_queries
        return Trial(
            mode=mode,
            setting=msgspec.structs.replace(figure.at(point, series), speed=speed),
            policy=policy,
            queries=min(queries, most),
            warm_up=figure.warm_up,
            seed=seed,
        )

    places = [each for each in product(figure.series, points) if each[0].tuned]
    tuning = [
        [trial("simulated", series, point, policy, TUNING) for policy in series.candidates]
        for series, point in places
    ]
    tried_out = iter(trials.run([one for tried in tuning for one in tried]))
    chosen: dict[tuple[str, int], PolicyChoice] = {}
    for (series, point), tried in zip(places, tuning, strict=True):
        ran = [(next(tried_out), one.policy) for one in tried]
        chosen[series.label, point] = _best(ran, series.tuned_by)
    planned = []
    for mode, point, series in product(get_args(Mode), points, figure.series):
        if mode == "simulated" or (point in real and series.real):
            policy = chosen.get((series.label, point)) or series.candidates[0]
            options = policy.written_out()
            said = ", ".join(f"{name}={options[name]}" for name in series.tuned)
            label = f"{series.label} ({said})" if said else series.label
            planned.append((series, label, point, trial(mode, series, point, policy)))
    results = trials.run([one for *_, one in planned])
    return [Cell(*each, result) for each, result in zip(planned, results, strict=True)]


def _best(ran: Sequence[tuple[TrialResult, PolicyChoice]], by: str) -> PolicyChoice:
    return min(ran, key=lambda each: (each[0]["failed"], each[0][by]))[1]
