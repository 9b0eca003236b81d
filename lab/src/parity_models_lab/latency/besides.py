"""What serving takes besides what is simulated of it: measured in a calm run, for real."""

from collections.abc import Callable

import msgspec

from parity_models.faults import Constant
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.simulation.besides import Besides, Took, besides
from parity_models.simulation.setting import Setting, mean_of
from parity_models.simulation.trial import Emulation, Mode, Trial, TrialResult


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


def besides_of(
    calm: Trial, real: TrialResult, simulated: Callable[[Trial], TrialResult]
) -> Besides:
    """What a calm trial, whose `real` result is given, took besides what its simulation takes."""
    imagined = msgspec.structs.replace(calm, mode=Mode.SIMULATED)

    def took(known: Besides) -> Took:
        return _took(simulated(msgspec.structs.replace(imagined, **known._asdict())))

    if calm.cores is None:
        bare = took(Besides(0.0, ()))
        held = max(0.0, (real.busy_ms or 0.0) - bare.busy_ms)
        inside = bare.p50_ms + held
        return Besides(held, tuple(max(0.0, ms - inside) for ms in real.quantiles_ms))
    unit = (real.workers_ms or 0.0) - 1e3 * mean_of(calm.setting.service)
    return besides(_took(real), unit, real.serving_ms or 0.0, took)


def _took(result: TrialResult) -> Took:
    return Took(result.p50_ms, result.busy_ms or 0.0, result.quantiles_ms)
