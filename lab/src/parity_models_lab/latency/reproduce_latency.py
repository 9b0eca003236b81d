"""The paper's latency figures, and ours: their trials, tables and pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import msgspec
from tqdm import tqdm

from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.experiment import Experiment, Series
from parity_models_lab.latency.figures import Line, plot_experiment
from parity_models_lab.latency.setting import Setting, mean_of
from parity_models_lab.latency.trial import (
    PERCENTILES,
    Mode,
    Trial,
    TrialResult,
    simulate_trial,
)
from parity_models_lab.results import INVALID, Row, TrialCache

REAL_QUERIES, SIMULATED_QUERIES, WARM_UP = 2_000, 10_000, 500
"""The queries of a real and of a simulated trial, and those before them that are not counted, where
the experiment does not say otherwise."""

TUNING = 50_000
"""Queries of a simulation by which options are chosen, at most."""


@dataclass(frozen=True)
class Plan:
    """The trials of one experiment; `figure` is its name or file.

    With `real`, points and series that say so are run for real, too. `chosen` are the options of
    tuned series, by label and point, once they are known.
    """

    figure: str
    experiment: Experiment
    seed: int
    real: bool = True
    speed: float = 0.0
    chosen: Mapping[tuple[str, int], PolicyChoice] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its files."""
        speed = f"-speed-{self.speed:g}" if self.speed else ""
        seed = f"-seed-{self.seed}" if self.seed else ""
        return f"{Path(self.figure).stem}{speed}{seed}"

    def tuning_trials(self) -> list[Trial]:
        """Return the simulations that tune options."""
        return [
            trial
            for series, point in self._tuned_points()
            for trial in self._candidates(series, point)
        ]

    def tuned(self, cache: TrialCache) -> "Plan":
        """Return this plan with the best options of tuned series at each point, by tuning trials
        that have been run. Options with which queries fail are worse than all others."""
        chosen = {}
        for series, point in self._tuned_points():
            by = PERCENTILES[series.tuned_by]
            best = min(
                ((cache[trial], trial) for trial in self._candidates(series, point)),
                key=lambda run: (run[0].errors, getattr(run[0], by)),
            )
            chosen[series.label, point] = best[1].policy
        return replace(self, chosen=chosen)

    def choice(self, series: Series, point: int) -> PolicyChoice:
        """Return the policy of a series at a point, tuned as far as that is known."""
        return self.chosen.get((series.label, point), series.choice)

    def trials(self, series: Series) -> Iterator[tuple[int, Trial]]:
        """Yield (position on the axis, trial) of a series, simulated and real."""
        for point in range(len(self.experiment.points)):
            yield point, self.trial(Mode.SIMULATED, series, point)
            if self.real and series.real and point in self.experiment.real:
                yield point, self.trial(Mode.REAL, series, point)

    def all_trials(self) -> list[Trial]:
        return [trial for series in self.experiment.series for _, trial in self.trials(series)]

    def queries(self, mode: Mode) -> int:
        """Return the number of queries that are counted in each run."""
        if mode is Mode.REAL:
            return self.experiment.real_queries or REAL_QUERIES
        return self.experiment.simulated_queries or SIMULATED_QUERIES

    def _tuned_points(self) -> Iterator[tuple[Series, int]]:
        tuned = (series for series in self.experiment.series if series.tuned)
        return product(tuned, range(len(self.experiment.points)))

    def _candidates(self, series: Series, point: int) -> list[Trial]:
        trial = self.trial(Mode.SIMULATED, series, point)
        queries = min(trial.queries, TUNING)
        return [
            msgspec.structs.replace(trial, policy=choice, queries=queries)
            for choice in series.candidates
        ]

    def trial(self, mode: Mode, series: Series, point: int) -> Trial:
        """Return the trial of a series at a point."""
        return Trial(
            mode=mode,
            setting=msgspec.structs.replace(self.experiment.at(point, series), speed=self.speed),
            policy=self.choice(series, point),
            queries=self.queries(mode),
            warm_up=WARM_UP if self.experiment.warm_up is None else self.experiment.warm_up,
            seed=self.seed,
        )


def run_trials(
    trials: Sequence[Trial], cache: TrialCache, run_real: Callable[[Trial], TrialResult]
) -> None:
    """Run the trials that the cache lacks: the simulated on all cores, then the real in turn."""
    to_run = {trial.key: trial for trial in trials if cache.find(trial) is None}.values()
    simulated = [trial for trial in to_run if trial.mode is Mode.SIMULATED]
    with (
        tqdm(total=len(simulated), desc="simulated", disable=not simulated) as bar,
        ProcessPoolExecutor() as pool,
    ):
        futures = {pool.submit(simulate_trial, trial): trial for trial in simulated}
        try:
            for future in as_completed(futures):
                cache.keep(futures[future], future.result())
                bar.update()
        except BaseException:  # Ctrl-C included: do not wait for those that have not begun
            pool.shutdown(cancel_futures=True)
            raise
    real = [trial for trial in to_run if trial.mode is Mode.REAL]
    for trial in tqdm(real, desc="real", disable=not real):
        cache.keep(trial, run_real(trial))


def lines_of(plan: Plan, cache: TrialCache) -> list[Line]:
    """Return a line for each series of a plan whose trials have been run."""
    points = range(len(plan.experiment.points))
    lines = []
    for series in plan.experiment.series:
        results: dict[Mode, list[TrialResult | None]] = {
            mode: [None] * len(points) for mode in Mode
        }
        for point, trial in plan.trials(series):
            results[trial.mode][point] = cache.find(trial)
        labels = []
        for point in points:
            options = plan.choice(series, point).written_out()
            chosen = ", ".join(f"{name}={options[name]}" for name in series.tuned)
            labels.append(f"{series.label} ({chosen})" if chosen else series.label)
        lines.append(Line(series.label, results[Mode.SIMULATED], results[Mode.REAL], labels))
    return lines


SEND_DELAY_MS = 1.0
"""Maximum p99 of how late a load generator sends."""

LAG = 0.1
"""Maximum mean time that reports wait for the server, as a share of the service time."""


def rows_of(plan: Plan, lines: Sequence[Line]) -> Iterator[Row]:
    """Yield a row for each point, series and kind of run; latencies in ms.

    `shrinks` is the first series' gap divided by this one's.
    """
    experiment = plan.experiment
    for mode in Mode:
        columns = [line.real if mode is Mode.REAL else line.simulated for line in lines]
        for point, label in enumerate(experiment.labels):
            baseline = columns[0][point]
            for series, line, results in zip(experiment.series, lines, columns, strict=True):
                here = results[point]
                if here is None:
                    continue
                yield {
                    experiment.axis: label,
                    "policy": line.labels[point],
                    "run": str(mode),
                    "p50": here.p50_ms,
                    "p99": here.p99_ms,
                    "p99.9": here.p999_ms,
                    "gap": here.gap_ms,
                    "shrinks": None if baseline is None else baseline.gap_ms / here.gap_ms,
                    "stood in": sum(here.share(each) for each in Source if each.stands_in),
                    "failed": here.errors,
                    "busy": here.busy_ms,
                    "work": here.work,
                    "send delay": here.send_delay_p99_ms,
                    "lag": here.lag_ms,
                    INVALID: why_invalid(here, experiment.at(point, series)),
                }


def why_invalid(result: TrialResult, setting: Setting) -> str:
    """Return why a run says nothing of its policy, as generator or server was too late; empty if it
    is valid."""
    if (result.send_delay_p99_ms or 0.0) > SEND_DELAY_MS:
        return "the load generator was late"
    if (result.lag_ms or 0.0) > LAG * mean_of(setting.service) * 1e3:
        return "the server was its own bottleneck"
    return ""


def draw(plan: Plan, lines: Sequence[Line], path: Path) -> None:
    """Draw a figure's picture; distributions are those of the last point run for real, if any."""
    points = range(len(plan.experiment.points))
    real = [point for point in points if any(line.real[point] is not None for line in lines)]
    plot_experiment(path, plan.experiment, lines, (real or points)[-1])
