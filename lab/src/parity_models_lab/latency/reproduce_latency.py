"""The paper's latency figures, and ours: their trials, tables and pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import msgspec

from parity_models.progress import Progress, progress_bars
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.experiment import Experiment, Series
from parity_models_lab.latency.setting import Setting, mean_of
from parity_models_lab.latency.trial import (
    PERCENTILES,
    Mode,
    Trial,
    TrialResult,
    simulate_trial,
)
from parity_models_lab.results import INVALID, ResultCache, Row, code_digest, simulated

REAL_QUERIES, SIMULATED_QUERIES, WARM_UP = 2_000, 10_000, 500
"""The queries of a real and of a simulated trial, and those before them that are not counted, where
the experiment does not say otherwise."""

TUNING = 50_000
"""Queries of a simulation by which options are chosen, at most."""


class Trials:
    """Runs trials, and keeps the results of this code in a folder."""

    def __init__(self, folder: Path, run_real: Callable[[Trial], TrialResult]) -> None:
        self._cache, self._run_real = ResultCache(folder), run_real

    def find(self, trial: Trial) -> TrialResult | None:
        """Return the result of a trial that was run, else None."""
        return self._cache.get(_key(trial), TrialResult)

    def __getitem__(self, trial: Trial) -> TrialResult:
        """Return the result of a trial, run now if it was not yet."""
        self.run([trial])
        result = self.find(trial)
        assert result is not None
        return result

    def run(self, trials: Sequence[Trial]) -> None:
        """Run those without a result: the simulated on all cores, then the real in turn."""
        to_run = {trial.key: trial for trial in trials if self.find(trial) is None}.values()
        for trial, result in simulated(
            simulate_trial, [trial for trial in to_run if trial.mode is Mode.SIMULATED]
        ):
            self._cache.put(_key(trial), result)
        real = [trial for trial in to_run if trial.mode is Mode.REAL]
        with progress_bars() as bars:
            for done, trial in enumerate(real):
                bars.on_progress(Progress("real", done, len(real)))
                self._cache.put(_key(trial), self._run_real(trial))


def _key(trial: Trial) -> str:
    return f"{trial.key}-{code_digest()}"


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

    def tuned(self, trials: Trials) -> "Plan":
        """Return this plan with the best options of tuned series at each point, by simulations.

        Options with which queries fail are worse than all others.
        """
        tuned = [series for series in self.experiment.series if series.tuned]
        places = list(product(tuned, range(len(self.experiment.points))))
        trials.run([each for place in places for each in self.candidates(*place)])
        chosen = {}
        for series, point in places:
            by = PERCENTILES[series.tuned_by]
            results = [(trials[each], each.policy) for each in self.candidates(series, point)]
            best = min(results, key=lambda run: (run[0].errors, getattr(run[0], by)))
            chosen[series.label, point] = best[1]
        return replace(self, chosen=chosen)

    def candidates(self, series: Series, point: int) -> list[Trial]:
        """Return the simulations that tune the options of a series at a point."""
        trial = self.trial(Mode.SIMULATED, series, point)
        queries = min(trial.queries, TUNING)
        return [
            msgspec.structs.replace(trial, policy=choice, queries=queries)
            for choice in series.candidates
        ]

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


@dataclass(frozen=True)
class Line:
    """A series: results by kind of run and position on the axis, None where there is none.

    `labels` name it at each position, with its tuned options there.
    """

    series: Series
    results: Mapping[Mode, Sequence[TrialResult | None]]
    labels: Sequence[str]


def lines_of(plan: Plan, trials: Trials) -> list[Line]:
    """Return a line for each series of a plan whose trials have been run."""
    points = range(len(plan.experiment.points))
    lines = []
    for series in plan.experiment.series:
        results: dict[Mode, list[TrialResult | None]] = {
            mode: [None] * len(points) for mode in Mode
        }
        for point, trial in plan.trials(series):
            results[trial.mode][point] = trials.find(trial)
        labels = []
        for point in points:
            options = plan.choice(series, point).written_out()
            chosen = ", ".join(f"{name}={options[name]}" for name in series.tuned)
            labels.append(f"{series.label} ({chosen})" if chosen else series.label)
        lines.append(Line(series, results, labels))
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
    for mode, (point, label) in product(Mode, enumerate(experiment.labels)):
        baseline = lines[0].results[mode][point]
        for line in lines:
            here = line.results[mode][point]
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
                INVALID: why_invalid(here, experiment.at(point, line.series)),
            }


def why_invalid(result: TrialResult, setting: Setting) -> str:
    """Return why a run says nothing of its policy, as generator or server was too late; empty if it
    is valid."""
    if (result.send_delay_p99_ms or 0.0) > SEND_DELAY_MS:
        return "the load generator was late"
    if (result.lag_ms or 0.0) > LAG * mean_of(setting.service) * 1e3:
        return "the server was its own bottleneck"
    return ""
