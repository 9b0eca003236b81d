"""The simulator against real runs: each policy both ways, and how far apart they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from parity_models.simulation.besides import Besides
from parity_models.simulation.course import SHARES
from parity_models.simulation.setting import Setting
from parity_models.simulation.trial import Emulation, Mode, Trial, TrialResult
from parity_models_lab.latency.besides import besides_of, calm_trial
from parity_models_lab.latency.reproduce_latency import Plan
from parity_models_lab.latency.trial_cache import TrialCache
from parity_models_lab.report_page import provenance

CONTENTION = ("shuffles", "tenants", "hogs", "pause_every", "kill_every")
"""What a setting says of contention."""

CLOSE = 0.15
"""How far a simulated percentile may be from the real one."""

PERCENTILES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}

_CONTENTION_IS = {
    Emulation.NOTHING: "Contention is real in real runs, shuffles through shaped links; simulated "
    "runs have the same transfers over simulated links, and drawn equivalents of the rest.",
    Emulation.EVERYTHING: "Contention is drawn in both, so that both meet the same course of "
    "disturbances in time.",
}

Runner = Callable[[Sequence[Trial]], None]
"""Has trials run and their results put into the cache."""


@dataclass(frozen=True)
class Compared:
    """A policy, run for real and simulated."""

    label: str
    real: TrialResult
    simulated: TrialResult

    def off(self, percentile: str) -> float:
        """How far the simulated latency is from the real one, as a share of that."""
        of = PERCENTILES[percentile]
        return float(getattr(self.simulated, of) / getattr(self.real, of) - 1)

    @property
    def close(self) -> bool:
        """Is every percentile within CLOSE?"""
        return all(abs(self.off(percentile)) <= CLOSE for percentile in PERCENTILES)


@dataclass(frozen=True)
class Point:
    """All policies in one setting, and what serving took besides what is simulated of it."""

    label: str
    setting: Setting
    besides: Besides
    compared: tuple[Compared, ...]


def compare(
    plan: Plan, points: Sequence[int], queries: int, run: Runner, cache: TrialCache
) -> list[Point]:
    """Run the policies of a plan's experiment at some of its points, for real and then simulated.

    Tuned series have the options with which simulations are best there.
    """
    run(plan.tuning_trials(points))
    plan = plan.tuned(cache, points)
    experiment = plan.experiment
    real = [
        [
            Trial(
                mode=Mode.REAL,
                setting=experiment.at(point, series),
                policy=plan.choice(series, point),
                queries=queries,
                warm_up=500,
                seed=plan.seed,
                network=plan.network or Emulation.NOTHING,
            )
            for series in experiment.series
        ]
        for point in points
    ]
    calm = [calm_trial(trials[0]) for trials in real]
    run([*calm, *(trial for trials in real for trial in trials)])

    def result(trial: Trial) -> TrialResult:
        run([trial])
        return cache[trial]

    further = [besides_of(each, cache[each], result) for each in calm]
    simulated = [
        [msgspec.structs.replace(each, mode=Mode.SIMULATED, **took._asdict()) for each in trials]
        for trials, took in zip(real, further, strict=True)
    ]
    run([trial for trials in simulated for trial in trials])
    labels = [series.label for series in experiment.series]
    return [
        Point(
            experiment.labels[point],
            trials[0].setting,
            took,
            tuple(
                Compared(label, cache[trial], cache[other])
                for label, trial, other in zip(labels, trials, others, strict=True)
            ),
        )
        for point, trials, others, took in zip(points, real, simulated, further, strict=True)
    ]


def write_validation(
    path: Path, points: Sequence[Point], network: Emulation, queries: int, command: str
) -> None:
    """Write how far the simulator is from real runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(points, network, queries, command)) + "\n")


def _lines(
    points: Sequence[Point], network: Emulation, queries: int, command: str
) -> Iterator[str]:
    yield "# The simulator against real runs\n"
    yield from provenance(command)
    yield f"{queries:,} queries a run, with the same arrivals in both. {_CONTENTION_IS[network]}"
    yield "The real runs have processes, sockets, an HTTP server and a client besides. What that"
    yield "adds was measured beforehand, without redundancy or disturbances: simulated units hold"
    yield "their instances for so much longer, and simulated answers take a time drawn from those"
    yield "outside of queue and instance longer. Where models compute, they share simulated cores"
    yield "with each other, with server and client, and with what else competes. Latencies in ms.\n"
    everything = [each for point in points for each in point.compared]
    close = sum(each.close for each in everything)
    worst = max(
        (abs(each.off(of)), of, each.label, point.label)
        for point in points
        for each in point.compared
        for of in PERCENTILES
    )
    yield f"Within {CLOSE:.0%} at {', '.join(PERCENTILES)}: {close} of {len(everything)} policies."
    yield f"Farthest off: {worst[0]:.0%}, {worst[1]} of {worst[2]}, {worst[3]}.\n"
    for point in points:
        yield from _point(point)


def _point(point: Point) -> Iterator[str]:
    setting = point.setting
    contention = [
        f"{kind} {getattr(setting, kind):g}" for kind in CONTENTION if getattr(setting, kind)
    ]
    took = point.besides
    outside = np.interp([0.5, 0.99, 0.999], SHARES, took.outside_ms)
    yield f"## {point.label}\n"
    yield f"{setting.instances} + {setting.parity_instances} instances,"
    yield f"{setting.queries_per_second:.0f} queries per second;"
    yield f"{', '.join(contention) or 'no contention'}. An instance is held for"
    yield f"{took.held_ms:.1f} longer. Outside queue and instance:"
    yield f"{outside[0]:.1f} at the median, {outside[1]:.1f} at p99, {outside[2]:.1f} at p99.9."
    if setting.computing:
        serving = took.serving_ms + took.unseen_ms
        yield f"For each query server and client compute {serving:.1f}, of which it waits for"
        yield f"{took.serving_ms:.1f}; for each unit workers compute {took.unit_ms:.1f} besides."
    yield ""
    headings = " | ".join(f"{of} real | simulated | off" for of in PERCENTILES)
    yield f"| policy | {headings} | all within {CLOSE:.0%} |"
    yield "|---" * (3 * len(PERCENTILES) + 2) + "|"
    for each in point.compared:
        cells = [each.label]
        for of, field in PERCENTILES.items():
            real, simulated = getattr(each.real, field), getattr(each.simulated, field)
            cells += [f"{real:.1f}", f"{simulated:.1f}", f"{each.off(of):+.0%}"]
        yield f"| {' | '.join(cells)} | {'yes' if each.close else '**no**'} |"
    yield ""
