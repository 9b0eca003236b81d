"""What the project aims at with real models, held against what was measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from parity_models_lab.real.results import RealResult, StandInResult
from parity_models_lab.target import Target

Measured = Callable[[StandInResult], float | None]


@dataclass(frozen=True)
class Aim:
    """For the model called `model`: of stand-ins that take at most this `share` of its time, the
    largest `value` is to be at least `wanted`; None: the model's own accuracy, less the `loss`.

    With a `network` it is about that stand-in, where there is one.
    """

    model: str
    what: str
    share: float
    value: Measured
    wanted: float | None
    loss: float = 0.0
    network: str | None = None

    def judges(self, stand_in: StandInResult) -> bool:
        return self.network is None or self.network == stand_in.network


AIMS = (
    Aim("banking77", "A_d", 0.05, lambda one: one.degraded, None),
    Aim(
        "banking77",
        "A_d by superposition, k = 2,",
        1.2,
        lambda one: one.degraded,
        None,
        loss=0.03,
        network="superposition, k = 2",
    ),
    Aim("file-types", "agreement", 0.2, lambda one: one.agreement, 0.95),
    Aim("file-types", "coverage at 0.99", 0.2, lambda one: one.coverage or 0.0, 0.8),
    Aim("embeddings", "mean cosine", 0.2, lambda one: one.agreement, 0.95),
)


def targets(results: Sequence[RealResult]) -> Iterator[Target]:
    """The targets that the results say something about."""
    for result in results:
        for aim in AIMS:
            if aim.model == result.name and any(map(aim.judges, result.stand_ins)):
                yield _judged(aim, result)


def _judged(aim: Aim, result: RealResult) -> Target:
    wanted = aim.wanted
    if wanted is None and result.available is not None:
        wanted = result.available - aim.loss
    less = f" less {aim.loss:.0%}" if aim.loss else ""
    said = f"at least {_percent(wanted)}" + (f" (A_a{less})" if aim.wanted is None else "")
    what = f"{result.title}: {aim.what} at no more than {aim.share:.0%} of the model's time"
    values = {
        one: value
        for one in result.stand_ins
        if aim.judges(one) and one.relative <= aim.share and (value := aim.value(one)) is not None
    }
    if not values or wanted is None:
        fastest = min((one.relative for one in result.stand_ins), default=None)
        found = "" if fastest is None else f"; the fastest takes {fastest:.0%}"
        return Target(what, said, f"no stand-in is that fast{found}", False)
    best = max(values, key=lambda one: values[one])
    measured = f"{_percent(values[best])} ({best.network}, {best.relative:.1%} of the time)"
    return Target(what, said, measured, values[best] >= wanted)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"
