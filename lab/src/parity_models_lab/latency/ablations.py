"""The adaptive policy without one of its parts each, to see what they are worth (`ablation`)."""

from collections.abc import Collection
from dataclasses import replace
from math import inf
from typing import Any

from parity_models.scheduling.actions import Source
from parity_models.scheduling.policies import Adaptive, Policy, StandIns
from parity_models.scheduling.policies.benefit import Benefit, Choice
from parity_models.scheduling.policies.risk import Risk
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Unit

QUARTER = 0.25
"""The share of units that are late."""


class CopiesAlone(Adaptive):
    """No stand-in is asked."""

    name = "copies-alone"

    @classmethod
    def build(cls, options: Any, stand_ins: StandIns) -> Policy:
        return cls(StandIns(), options)


class AskedOnce(Adaptive):
    """What is late itself is not asked again."""

    name = "asked-once"
    MOST = 2


class _Flat(Benefit):
    STEEPNESS = 0


class _FlatRisk(Risk):
    RULE = _Flat


class FlatPrice(Adaptive):
    """Instance time has one price at every load."""

    name = "flat-price"
    RISK = _FlatRisk


class _Linear(Benefit):
    STEEPNESS = 1


class _LinearRisk(Risk):
    RULE = _Linear


class LinearPrice(Adaptive):
    """The price of instance time grows with 1 / (1 - load) alone."""

    name = "linear-price"
    RISK = _LinearRisk


class RefusedAndWaits(Adaptive):
    """A query whose stand-in was refused waits for its original, until it is looked at again."""

    name = "refused-and-waits"

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._look_at(port, query, port.now + self._risk.benefit.median)


class CoverageUnknown(Adaptive):
    """The stand-in is taken to answer every query."""

    name = "coverage-unknown"

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._look(port, query)


class _Quantile(Benefit):
    def at_risk(
        self, choice: Choice, running: RunTimes, before: float = 0.0, *, early: bool = False
    ) -> tuple[float, float]:
        late = (age for age, longer in running.ages() if longer <= QUARTER)
        return 1.0, next(late, inf)


class _QuantileRisk(Risk):
    RULE = _Quantile


class AtTheQuantile(Adaptive):
    """Asked at the age that three quarters of units do not reach, whatever it is worth."""

    name = "at-the-quantile"
    RISK = _QuantileRisk


class _SlowRisk(Risk):
    NEWEST = 0.02


class SlowLoad(Adaptive):
    """The load is averaged over ten times as long."""

    name = "slow-load"
    RISK = _SlowRisk


class AllAlike(Adaptive):
    """Slow instances are not told apart."""

    name = "all-alike"

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        alike = replace(unit, instance="any")
        super().unit_ended(port, alike, finished=finished)


class _AvoidsNone(Risk):
    @property
    def avoided(self) -> Collection[str]:
        return ()


class SentAnywhere(Adaptive):
    """What is sent is not kept off slow instances, which only take last."""

    name = "sent-anywhere"
    RISK = _AvoidsNone


class _GivenAtOnce(Risk):
    def given(self, began: float) -> float:
        return began


class GivenAtOnce(Adaptive):
    """What a backup says is given as soon as it is here."""

    name = "given-at-once"
    RISK = _GivenAtOnce
