"""The paper's latency figures, and ours: trials of experiments, pictures and a report."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from parity_models.bench.experiment import Experiment, Series
from parity_models.bench.figures import Line, plot_experiment
from parity_models.bench.trial import Mode, Network, Trial, TrialResult, simulate_trial
from parity_models.bench.trial_cache import TrialCache


@dataclass(frozen=True)
class Preset:
    """How much is run: counted queries of a real and of a simulated trial, and which are real.

    `all_real` runs every point for real, else only those that the experiment names.
    """

    real_queries: int
    simulated_queries: int
    all_real: bool
    warm_up: int = 500


PRESETS = {
    "quick": Preset(real_queries=3_000, simulated_queries=10_000, all_real=False),
    "paper": Preset(real_queries=20_000, simulated_queries=100_000, all_real=True),
}


@dataclass(frozen=True)
class Plan:
    """The trials of one experiment under a preset."""

    name: str
    experiment: Experiment
    preset: Preset
    seed: int
    network: Network | None

    def trials(self, series: Series) -> Iterator[tuple[int, Trial]]:
        """(position on the axis, trial) of a series, simulated and real."""
        for point in range(len(self.experiment.points)):
            yield point, self._trial(Mode.SIMULATED, series, point)
            if self._is_real(series, point):
                yield point, self._trial(Mode.REAL, series, point)

    def all_trials(self) -> list[Trial]:
        return [trial for series in self.experiment.series for _, trial in self.trials(series)]

    def _is_real(self, series: Series, point: int) -> bool:
        if self.network is None:
            return False
        return self.preset.all_real or (series.real and point in self.experiment.real)

    def _trial(self, mode: Mode, series: Series, point: int) -> Trial:
        real = mode is Mode.REAL
        return Trial(
            mode=mode,
            setting=self.experiment.at(point, series),
            policy=series.policy,
            queries=self.preset.real_queries if real else self.preset.simulated_queries,
            warm_up=self.preset.warm_up,
            seed=self.seed,
            network=self.network if real and self.network else Network.EMULATED,
        )


def run_trials(
    trials: Sequence[Trial], cache: TrialCache, run_real: Callable[[Trial], TrialResult]
) -> None:
    """Run what the cache does not hold: the simulated on all cores, then the real in turn."""
    missing = list({trial.key: trial for trial in trials if cache.get(trial) is None}.values())
    simulated = [trial for trial in missing if trial.mode is Mode.SIMULATED]
    with (
        tqdm(total=len(simulated), desc="simulated", disable=not simulated) as bar,
        ProcessPoolExecutor() as pool,
    ):
        futures = {pool.submit(simulate_trial, trial): trial for trial in simulated}
        for future in as_completed(futures):
            cache.put(futures[future], future.result())
            bar.update()
    real = [trial for trial in missing if trial.mode is Mode.REAL]
    for trial in tqdm(real, desc="real", disable=not real):
        cache.put(trial, run_real(trial))


@dataclass(frozen=True)
class FigureResult:
    """An experiment's results: a line for each series."""

    plan: Plan
    lines: tuple[Line, ...]

    @property
    def xs(self) -> list[float]:
        return [float(point[self.plan.experiment.axis]) for point in self.plan.experiment.points]


def collect(plan: Plan, cache: TrialCache) -> FigureResult:
    """Gather the results of a plan whose trials have been run."""
    lines = []
    for series in plan.experiment.series:
        results: dict[Mode, list[TrialResult | None]] = {
            mode: [None] * len(plan.experiment.points) for mode in Mode
        }
        for point, trial in plan.trials(series):
            results[trial.mode][point] = cache.get(trial)
        lines.append(Line(series.label, results[Mode.SIMULATED], results[Mode.REAL]))
    return FigureResult(plan, tuple(lines))


def draw(result: FigureResult, path: Path, note: str) -> None:
    """Draw a figure's picture; its distributions are those of the last point run for real."""
    experiment = result.plan.experiment
    real = [
        point
        for point in range(len(experiment.points))
        if any(line.real[point] is not None for line in result.lines)
    ]
    plot_experiment(
        path,
        experiment.title,
        experiment.axis,
        result.xs,
        result.lines,
        real[-1] if real else len(experiment.points) - 1,
        note,
    )
