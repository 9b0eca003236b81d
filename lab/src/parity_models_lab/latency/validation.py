"""The simulator against real runs: each policy both ways, and how far apart they are.

What serving takes besides queues and units is measured in a calm real run, and added to the
simulations.
"""

from collections.abc import Callable

import msgspec
import numpy as np

from parity_models.emulation import Constant
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models_lab.latency.reproduce_latency import Plan, Trials
from parity_models_lab.latency.setting import Setting, mean_of
from parity_models_lab.latency.trial import (
    PERCENTILES,
    SHARES,
    Mode,
    Overheads,
    Trial,
    TrialResult,
)
from parity_models_lab.results import Row

CLOSE = 0.15
"""The largest error of a simulated percentile that counts as close."""


def compare(plan: Plan, queries: int, trials: Trials) -> tuple[list[Row], list[Row]]:
    """Run the policies of a plan's experiment at its points, for real and then simulated.

    Tuned series have the options with which simulations are best there.

    Returns:
        A row for each point and policy, with latencies in ms, `off` as shares of the real ones; and
        by point what serving takes besides what is simulated, in ms.

    """
    plan, series = plan.tuned(trials), plan.experiment.series
    rows: list[Row] = []
    overheads: list[Row] = []
    for point, label in enumerate(plan.experiment.labels):
        real = [
            msgspec.structs.replace(plan.trial(Mode.REAL, each, point), queries=queries)
            for each in series
        ]
        calm = calm_trial(real[0])
        trials.run([calm, *real])
        took = overheads_between(calm, trials[calm], trials.__getitem__)
        simulated = [
            msgspec.structs.replace(trial, mode=Mode.SIMULATED, overheads=took) for trial in real
        ]
        trials.run(simulated)
        for each, trial, other in zip(series, real, simulated, strict=True):
            rows.append({"at": label, "policy": each.label, **off(trials[trial], trials[other])})
        outside = np.interp([0.5, 0.99, 0.999], SHARES, took.outside_ms).tolist()
        overheads.append(
            {
                "at": label,
                "rate": real[0].setting.queries_per_second,
                "held": took.held_ms,
                **{f"outside {name}": ms for name, ms in zip(PERCENTILES, outside, strict=True)},
                "server and client": took.serving_ms + took.unseen_ms,
                "worker": took.unit_ms,
            }
        )
    return rows, overheads


def off(real: TrialResult, simulated: TrialResult) -> dict[str, float]:
    """Return the latencies of both, and the errors of the simulated ones."""
    row: dict[str, float] = {}
    for percentile, of in PERCENTILES.items():
        row[f"{percentile} real"] = getattr(real, of)
        row[f"{percentile} simulated"] = getattr(simulated, of)
        row[f"{percentile} off"] = getattr(simulated, of) / getattr(real, of) - 1
    return row


def summary(rows: list[Row]) -> str:
    """Return in a sentence how many policies are close at every percentile."""
    close = [
        all(abs(float(str(row[f"{each} off"]))) <= CLOSE for each in PERCENTILES) for row in rows
    ]
    return f"Within {CLOSE:.0%} at {', '.join(PERCENTILES)}: {sum(close)} of {len(rows)} policies."


def calm_trial(trial: Trial) -> Trial:
    """A trial at the rate of `trial`, over its links if it has any, without redundancy,
    disturbances, or chance in service."""
    calm = Setting(
        instances=trial.setting.instances,
        k=trial.setting.k,
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
    serving = unit = 0.0
    if calm.cores is not None:
        serving = real.serving_ms or 0.0
        unit = max(0.0, (real.workers_ms or 0.0) - 1e3 * mean_of(calm.setting.service))

    def simulated(known: Overheads) -> TrialResult:
        return run(msgspec.structs.replace(calm, mode=Mode.SIMULATED, overheads=known))

    bare = simulated(Overheads(unit_ms=unit))
    held = max(0.0, (real.busy_ms or 0.0) - (bare.busy_ms or 0.0))
    if calm.cores is None:
        outside = np.maximum(0, np.array(real.quantiles_ms) - bare.p50_ms - held)
        return Overheads(held, tuple(outside.tolist()))
    waited = min(serving, max(0.0, real.p50_ms - bare.p50_ms - held))
    known = Overheads(held, (), waited, serving - waited, unit)
    less = np.array(simulated(known).quantiles_ms)
    outside = np.sort(np.maximum(0, np.array(real.quantiles_ms) - less))
    return msgspec.structs.replace(known, outside_ms=tuple(outside.tolist()))
