"""The gates of a server: which outputs of its stand-ins may answer, and whether they keep to it."""

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import OptionError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.gate import Calibration, Gate, GateLevel, StandIn
from parity_models.options import Spell
from parity_models.scheduling import BACKUPS, Source, source_of
from parity_models.serving.agreement_watch import AgreementWatches
from parity_models.serving.metrics import Metrics
from parity_models.tasks.agreeing import Agreement

AGREEMENT: Final = 0.99
"""The level that gates have at the most where nobody asks for one."""

Array = NDArray[Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenGate:
    """The level that the gate of a stand-in has, of those of its calibration."""

    calibration: Calibration
    level: GateLevel


def choose_gates(
    bundle: Bundle, roles: Collection[str], agreement: float | None
) -> dict[Source, ChosenGate]:
    """The gate of each stand-in of `bundle` that instances with these `roles` run.

    With an `agreement`, the lowest level that promises as much, which every one of them must be
    calibrated for; 0 asks for no gates. Without one, the highest level up to AGREEMENT of those
    that are calibrated. Raises UserError where that cannot be.
    """
    used = _used(roles)
    if agreement == 0:
        return {}
    if agreement is not None and not used:
        raise OptionError(
            lambda spell: (
                "an agreement is one of stand-ins, and this policy has none; leave "
                f"{spell('agreement')} out, or serve with a policy that uses the bundle's parity "
                "model or backup"
            )
        )
    chosen = {}
    for stand_in in used:
        calibration = bundle.manifest.calibration.get(stand_in)
        level: GateLevel | None = None
        if agreement is not None:
            level = _reaching(bundle, stand_in, calibration, agreement)
        elif calibration is not None:
            level = calibration.at_most(AGREEMENT)
        if calibration is not None and level is not None:
            chosen[Source(stand_in)] = ChosenGate(calibration, level)
    return chosen


def ungated(bundle: Bundle, roles: Collection[str], agreement: float | None) -> Iterator[str]:
    """What to say of stand-ins that answer without a gate though nobody asked for that."""
    if agreement is not None:
        return
    for stand_in in _used(roles):
        calibration = bundle.manifest.calibration.get(stand_in)
        if calibration is None:
            yield (
                f"the {stand_in} answers without a gate, as it is not calibrated; calibrate it "
                f"with: parm calibrate {bundle.path}"
            )
        elif calibration.at_most(AGREEMENT) is None:
            yield (
                f"the {stand_in} answers without a gate, as its calibration reached no level up to "
                f"{AGREEMENT:g}; calibrate it with more queries, or serve with a policy without it"
            )


def _used(roles: Collection[str]) -> list[StandIn]:
    found: list[StandIn] = []
    if any(source_of(role) is Source.RECONSTRUCTION for role in roles):
        found.append("reconstruction")
    return found + [role for role in BACKUPS if role in roles]


def _reaching(
    bundle: Bundle, stand_in: StandIn, calibration: Calibration | None, agreement: float
) -> GateLevel:
    if calibration is None:
        raise UserError(
            f"{bundle.path} has no calibration of its {stand_in}, so nothing is known of its "
            f"agreement; calibrate it with held-out queries: parm calibrate {bundle.path}"
        )
    level = calibration.at_least(agreement)
    if level is not None:
        return level
    most = calibration.at_most(1.0)
    most_said = "no level" if most is None else f"{most.level:g}"

    def say(spell: Spell) -> str:
        lower = (
            "" if most is None else f"serve with {spell('agreement')} {most.level:g} at most, or "
        )
        return (
            f"the {stand_in} of {bundle.path} is not calibrated for an agreement of {agreement:g}; "
            f"it reaches {most_said}: {lower}calibrate it with more queries: "
            f"parm calibrate {bundle.path} --agreement {agreement:g}"
        )

    raise OptionError(say)


class Gates:
    """Says which outputs of stand-ins may answer, and watches how often those agree.

    A stand-in without a gate among `chosen` may always answer. `metrics` count what is refused and
    compared, by source. `turned` is told which gate has opened (True) or closed.
    """

    def __init__(
        self,
        chosen: Mapping[Source, ChosenGate],
        metrics: Metrics,
        turned: Callable[[Source, bool], None] = lambda source, is_open: None,
    ) -> None:
        self._chosen = chosen
        self._gates = {
            source: Gate(each.calibration.confidence, each.level) for source, each in chosen.items()
        }
        self._agreements = {
            source: Agreement(each.calibration.kind, each.calibration.tolerance)
            for source, each in chosen.items()
        }
        self._watches = {
            source: AgreementWatches(each.level.level) for source, each in chosen.items()
        }
        self._metrics = metrics
        self._tell = turned
        for source, each in chosen.items():
            metrics.gate_open.labels(source).set(1)
            metrics.gate_tenants_shut_out.labels(source).set(0)
            metrics.gate_agreement.labels(source).set(each.level.level)
            metrics.gate_coverage.labels(source).set(each.level.coverage)
            for reason in ("gate", "closed", "tenant"):
                metrics.refused_answers.labels(source, reason)

    def is_closed(self, source: Source) -> bool:
        """Is the stand-in out of service, as it agreed too seldom?"""
        watch = self._watches.get(source)
        return watch is not None and not watch.open

    def refused(
        self, source: Source, outputs: Array, tenants: Sequence[str | None]
    ) -> Collection[int]:
        """The rows of a stand-in's `outputs` (n, *output shape) that may not answer, each for a
        query of its tenant."""
        gate = self._gates.get(source)
        if gate is None:
            return ()
        unsure = {int(row) for row in np.flatnonzero(gate.refused(outputs))}
        count = self._metrics.refused_answers
        count.labels(source, "gate").inc(len(unsure))
        watches = self._watches[source]
        if not watches.watches_some:
            return unsure
        shut = {row for row, tenant in enumerate(tenants) if not watches.is_open_for(tenant)}
        reason = "closed" if _is_closed_for_all(watches.closed_by) else "tenant"
        count.labels(source, reason).inc(len(shut - unsure))
        return unsure | shut

    def compared(
        self,
        source: Source,
        output: Array,
        prediction: Array,
        makers: Sequence[str],
        tenant: str | None,
    ) -> bool:
        """A stand-in's `output` and the model's `prediction` (*output shape) for the same query of
        `tenant` are here, made by the instances `makers`: do they agree?

        If the output may answer, that speaks for or against the gate.
        """
        agreement = self._agreements.get(source, _SAME_CLASS)
        agreed = bool(agreement(output[np.newaxis], prediction[np.newaxis])[0])
        gate = self._gates.get(source)
        if gate is not None and gate.refused(output[np.newaxis])[0]:
            return agreed
        self._metrics.compared_answers.labels(source).inc()
        if not agreed:
            self._metrics.disagreed_answers.labels(source).inc()
        watches = self._watches.get(source)
        if watches is not None:
            turned = watches.saw(agreed, makers, tenant)
            if turned.for_all:
                self._turned(source, watches.closed_by)
            elif turned.for_one:
                self._turned_for(source, tenant, watches.is_open_for(tenant))
            if turned.for_all or turned.for_one:
                self._metrics.gate_open.labels(source).set(watches.open)
                shut_out = self._metrics.gate_tenants_shut_out
                shut_out.labels(source).set(watches.tenants_shut_out)
        return agreed

    def _turned(self, source: Source, closed_by: Collection[Hashable]) -> None:
        self._tell(source, not closed_by)
        level = self._chosen[source].level.level
        if not closed_by:
            _log.warning("the %s agrees in %g of cases again, and answers again", source, level)
        elif _is_closed_for_all(closed_by):
            _log.warning(
                "the %s agrees in less than %g of cases, and answers nobody until it does again; "
                "are queries as they were when it was trained and calibrated?",
                source,
                level,
            )
        else:
            _log.warning(
                "the %s agrees in less than %g of cases, which were queries of the tenant %r alone:"
                " it answers none of them until it does again, and others are still answered",
                source,
                level,
                *closed_by,
            )

    def _turned_for(self, source: Source, tenant: str | None, is_open: bool) -> None:
        _log.warning(
            "the %s agrees in %s %g of cases for queries of the tenant %r: it answers %s",
            source,
            "at least" if is_open else "less than",
            self._chosen[source].level.level,
            tenant,
            "them again" if is_open else "none of them until it does again",
        )


def _is_closed_for_all(closed_by: Collection[Hashable]) -> bool:
    """Is a gate that these tenants' queries closed closed for all? Where it was those of a single
    tenant that has a name, others are answered still."""
    return len(closed_by) > 1 or None in closed_by


_SAME_CLASS = Agreement("classes", 0.0)
"""What agrees where nothing was calibrated."""
