"""What serving takes besides what is simulated of it: measured in a calm run, for real."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from parity_models.faults import Constant
from parity_models.lab.latency.setting import Setting, mean_of
from parity_models.lab.latency.trial import Emulation, Mode, Trial, TrialResult
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources


class Besides(NamedTuple):
    """In ms, as a trial has it: how long a unit holds its instance longer, what an answer takes
    outside of queue and instance, as quantiles at SHARES, and what is computed besides units."""

    held_ms: float
    outside_ms: tuple[float, ...]
    serving_ms: float = 0.0
    unseen_ms: float = 0.0
    unit_ms: float = 0.0


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
        quiet_links=bool(trial.setting.shuffles) and trial.network is Emulation.NOTHING,
    )
    return msgspec.structs.replace(trial, setting=calm, policy=PolicyChoice(EqualResources.name))


def besides(calm: Trial, real: TrialResult, simulated: Callable[[Trial], TrialResult]) -> Besides:
    """What a calm trial, whose `real` result is given, took besides what its simulation takes.

    Of what server and client compute, a query waits for as much as it waited for outside of queue
    and instance; the rest goes on unseen.
    """
    imagined = msgspec.structs.replace(calm, mode=Mode.SIMULATED)
    if calm.cores is None:
        bare = simulated(imagined)
        held = max(0.0, (real.busy_ms or 0.0) - (bare.busy_ms or 0.0))
        inside = bare.p50_ms + held
        return Besides(held, tuple(max(0.0, ms - inside) for ms in real.quantiles_ms))
    service = 1e3 * mean_of(calm.setting.service)
    unit = max(0.0, (real.workers_ms or 0.0) - service)
    bare = simulated(msgspec.structs.replace(imagined, unit_ms=unit))
    held = max(0.0, (real.busy_ms or 0.0) - (bare.busy_ms or 0.0))
    computed = real.serving_ms or 0.0
    serving = min(computed, max(0.0, real.p50_ms - bare.p50_ms - held))
    found = Besides(held, (), serving, computed - serving, unit)
    whole = simulated(msgspec.structs.replace(imagined, **found._asdict()))
    pairs = zip(real.quantiles_ms, whole.quantiles_ms, strict=True)
    return found._replace(outside_ms=tuple(max(0.0, ms - other) for ms, other in pairs))
