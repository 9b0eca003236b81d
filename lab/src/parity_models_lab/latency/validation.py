"""The simulator against real runs: each policy both ways, and how far apart they are.

What serving takes besides queues and units is measured in a calm real run, and added to the
simulations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from parity_models.emulation import Constant
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models_lab.latency.reproduce_latency import Plan
from parity_models_lab.latency.setting import Setting, mean_of
from parity_models_lab.latency.trial import (
    PERCENTILES,
    SHARES,
    Mode,
    Overheads,
    Trial,
    TrialResult,
)
from parity_models_lab.results import Row, TrialCache

CLOSE = 0.15
"""The largest error of a simulated percentile that counts as close."""

Runner = Callable[[Sequence[Trial]], None]
"""Has trials run and their results put into the cache."""


@dataclass(frozen=True)
class Compared:
    """A policy, run for real and simulated."""

    label: str
    real: TrialResult
    simulated: TrialResult

    def off(self, percentile: str) -> float:
        """Return the error of the simulated latency, as a share of the real one."""
        of = PERCENTILES[percentile]
        return float(getattr(self.simulated, of) / getattr(self.real, of) - 1)

    @property
    def close(self) -> bool:
        """True if every percentile is within CLOSE."""
        return all(abs(self.off(percentile)) <= CLOSE for percentile in PERCENTILES)


@dataclass(frozen=True)
class Point:
    """All policies in one setting, and what serving took besides what is simulated of it."""

    label: str
    setting: Setting
    overheads: Overheads
    compared: tuple[Compared, ...]


def compare(plan: Plan, queries: int, run: Runner, cache: TrialCache) -> list[Point]:
    """Run the policies of a plan's experiment at its points, for real and then simulated.

    Tuned series have the options with which simulations are best there.
    """
    run(plan.tuning_trials())
    plan = plan.tuned(cache)
    experiment = plan.experiment

    def result(trial: Trial) -> TrialResult:
        run([trial])
        return cache[trial]

    found = []
    for point, label in enumerate(experiment.labels):
        real = [
            msgspec.structs.replace(plan.trial(Mode.REAL, series, point), queries=queries)
            for series in experiment.series
        ]
        calm = calm_trial(real[0])
        run([calm, *real])
        overheads = overheads_between(calm, cache[calm], result)
        simulated = [
            msgspec.structs.replace(trial, mode=Mode.SIMULATED, overheads=overheads)
            for trial in real
        ]
        run(simulated)
        compared = tuple(
            Compared(series.label, cache[trial], cache[other])
            for series, trial, other in zip(experiment.series, real, simulated, strict=True)
        )
        found.append(Point(label, real[0].setting, overheads, compared))
    return found


def rows_of(points: Sequence[Point]) -> Iterator[Row]:
    """Yield a row for each point and policy; latencies in ms, `off` as shares of the real ones."""
    for point in points:
        for each in point.compared:
            row: dict[str, object] = {"at": point.label, "policy": each.label}
            for percentile, of in PERCENTILES.items():
                row[f"{percentile} real"] = getattr(each.real, of)
                row[f"{percentile} simulated"] = getattr(each.simulated, of)
                row[f"{percentile} off"] = each.off(percentile)
            yield row


def overheads_of(points: Sequence[Point]) -> Iterator[Row]:
    """Yield what serving takes besides what is simulated, by point, in ms."""
    for point in points:
        took = point.overheads
        outside = np.interp([0.5, 0.99, 0.999], SHARES, took.outside_ms).tolist()
        yield {
            "at": point.label,
            "rate": point.setting.queries_per_second,
            "held": took.held_ms,
            **{f"outside {name}": ms for name, ms in zip(PERCENTILES, outside, strict=True)},
            "server and client": took.serving_ms + took.unseen_ms,
            "worker": took.unit_ms,
        }


def summary(points: Sequence[Point]) -> str:
    """Return in a sentence how many policies are close at every percentile."""
    every = [each for point in points for each in point.compared]
    close = sum(each.close for each in every)
    return f"Within {CLOSE:.0%} at {', '.join(PERCENTILES)}: {close} of {len(every)} policies."


def calm_trial(trial: Trial) -> Trial:
    """A trial at the rate of `trial`, over its links if it has any, without redundancy,
    disturbances, or chance in service."""
    calm = Setting(
        instances=trial.setting.instances,
        k=trial.setting.k,
        r=trial.setting.r,
        rate=trial.setting.queries_per_second,
        service=Constant(mean_of(trial.setting.service)),
        computing=trial.setting.computing,
        shuffles=0,
        quiet_links=bool(trial.setting.shuffles),
    )
    return msgspec.structs.replace(trial, setting=calm, policy=PolicyChoice(EqualResources.name))


def overheads_between(
    calm: Trial, real: TrialResult, run: Callable[[Trial], TrialResult]
) -> Overheads:
    """Return the overheads of a calm trial: its `real` result less its simulation.

    Where models compute, workers computed for some time besides the model's run, and server and
    clients for some. Of the latter a query waits for the time that it spent outside of queue and
    instance; the rest is unseen.
    """
    busy = real.busy_ms or 0.0

    def simulated(known: Overheads) -> TrialResult:
        return run(msgspec.structs.replace(calm, mode=Mode.SIMULATED, overheads=known))

    def held_beyond(bare: TrialResult) -> float:
        return max(0.0, busy - (bare.busy_ms or 0.0))

    if calm.cores is None:
        bare = simulated(Overheads())
        held = held_beyond(bare)
        outside = np.maximum(0, np.array(real.quantiles_ms) - bare.p50_ms - held)
        return Overheads(held, tuple(outside.tolist()))
    serving = real.serving_ms or 0.0
    unit = max(0.0, (real.workers_ms or 0.0) - 1e3 * mean_of(calm.setting.service))
    bare = simulated(Overheads(unit_ms=unit))
    held = held_beyond(bare)
    waited = min(serving, max(0.0, real.p50_ms - bare.p50_ms - held))
    known = Overheads(held, (), waited, serving - waited, unit)
    less = np.array(simulated(known).quantiles_ms)
    outside = np.sort(np.maximum(0, np.array(real.quantiles_ms) - less))
    return msgspec.structs.replace(known, outside_ms=tuple(outside.tolist()))
