"""The gates of a server's stand-ins: which of their outputs may answer, and for which inputs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.roles import BACKUP, Source, source_of
from parity_models.tensors.signature import tensors_in
from parity_models.trust.doubt import Audit, curve_of, queries_to_show
from parity_models.trust.envelope import Envelope
from parity_models.trust.gate import (
    Calibration,
    Gate,
    GateLevel,
    StandIn,
    confidences,
    served,
)

AGREEMENT: Final = 0.99
"""The highest level that a gate gets unless an agreement is asked for."""

Array = NDArray[Any]


class Calibrated(Protocol):
    """A bundle: the calibrations of its stand-ins, and its folder, which messages name."""

    @property
    def path(self) -> Path: ...

    @property
    def gates(self) -> Mapping[StandIn, Calibration]: ...


@dataclass(frozen=True)
class ChosenGate:
    """The gate of a stand-in: a level of its calibration."""

    calibration: Calibration
    level: GateLevel

    @property
    def classes(self) -> dict[str, float]:
        """The levels of the classes that it lets through, by name; empty if it lets all through."""
        names = self.calibration.allowed
        return {names[each.number]: each.level for each in self.level.classes}


def choose_gates(
    bundle: Calibrated, roles: Collection[str], agreement: float | None, *, budgeted: bool = False
) -> dict[Source, ChosenGate]:
    """Choose the gate of each stand-in of `bundle` that instances with these `roles` run.

    Args:
        bundle: Has the calibrations.
        roles: The roles of all instances.
        agreement: Choose the lowest level that promises this much; 0 for no gates. None for the
            highest calibrated level up to AGREEMENT.
        budgeted: The policy has a budget of answers that may differ. Then None is for no gate,
            except for stand-ins that may answer some classes only.

    Raises:
        UserError: A stand-in is not calibrated for the agreement, or one limited to some classes
            would answer without a gate.

    """
    used = _used(roles)
    if agreement and not used:
        raise UserError(
            "this policy has no stand-in whose agreement could be chosen; leave "
            "--agreement out, or serve with a policy that uses the bundle's parity "
            "model or backup"
        )
    chosen = {}
    for stand_in in used:
        calibration = bundle.gates.get(stand_in)
        if budgeted and agreement is None and not (calibration and calibration.allowed):
            continue
        level = _level(bundle, stand_in, calibration, agreement)
        if calibration is not None and level is not None:
            chosen[Source(stand_in)] = ChosenGate(calibration, level)
    return chosen


def calibrations_of(bundle: Calibrated, roles: Collection[str]) -> dict[Source, Calibration]:
    """Return the calibrations of the stand-ins that instances with these `roles` run."""
    known = bundle.gates
    return {Source(each): known[each] for each in _used(roles) if each in known}


def doubtful(bundle: Calibrated, roles: Collection[str], differ: float) -> Iterator[str]:
    """Yield a note on each stand-in whose calibration says too little for a budget `differ`."""
    calibrate = f"parm calibrate {bundle.path} --inputs FILE"
    for stand_in in _used(roles) if 0 < differ < 1 else ():
        calibration = bundle.gates.get(stand_in)
        if calibration is None:
            yield (
                f"the {stand_in} is not calibrated, so each of its answers may differ from the "
                f"model's, and it answers hardly any; calibrate it with: {calibrate}"
            )
            continue
        curve = curve_of(calibration)
        if calibration.confidence == "none" and curve.doubts[0] > differ:
            yield (
                f"the {stand_in} does not say how sure it is of an output, and "
                f"{curve.doubts[0]:.2%} of them differ from the model's: within --differ "
                f"{differ:g}, it answers at most {differ / curve.doubts[0]:.2%} of all queries"
            )
        shown = Audit(curve, differ).smallest_shown
        if shown > differ:
            yield (
                f"the calibration of the {stand_in} cannot show that at most {differ:.3%} of all "
                f"answers differ, but {shown:.3%}, until enough answers are compared; "
                f"{queries_to_show(differ):,} held-out queries could show it: {calibrate}"
            )


def ungated(bundle: Calibrated, roles: Collection[str], agreement: float | None) -> Iterator[str]:
    """Yield a note on each stand-in that answers without a gate, unless that was asked for."""
    if agreement is not None:
        return
    for stand_in in _used(roles):
        calibration = bundle.gates.get(stand_in)
        if calibration is None:
            yield (
                f"the {stand_in} answers without a gate, as it is not calibrated; calibrate it "
                f"with: parm calibrate {bundle.path} --inputs FILE"
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
    if BACKUP in roles:
        found.append("backup")
    return found


def _level(
    bundle: Calibrated, stand_in: StandIn, calibration: Calibration | None, agreement: float | None
) -> GateLevel | None:
    """Return the level of a gate (see `choose_gates`); None for no gate."""
    if calibration is None:
        if not agreement:
            return None
        raise UserError(
            f"{bundle.path} has no calibration of its {stand_in}, so nothing is known of its "
            "agreement; calibrate it with held-out queries: "
            f"parm calibrate {bundle.path} --inputs FILE"
        )
    if agreement:
        level = calibration.at_least(agreement)
        if level is not None:
            return level
        most = calibration.at_most(1.0)
        reached = "no level" if most is None else f"{most.level:g}"
        lower = "" if most is None else f"serve with --agreement {most.level:g} at most, or "
        raise UserError(
            f"the {stand_in} of {bundle.path} is not calibrated for an agreement of {agreement:g}; "
            f"it reaches {reached}: {lower}calibrate it with more queries: "
            f"parm calibrate {bundle.path} --inputs FILE --agreement {agreement:g}"
        )
    level = None if agreement == 0 else calibration.at_most(AGREEMENT)
    if level is None and calibration.allowed:
        classes = ", ".join(calibration.allowed.values())
        raise UserError(
            f"the {stand_in} of {bundle.path} may answer {classes} only, and without a gate it "
            "would answer every class; calibrate it with more queries: parm calibrate "
            f"{bundle.path}, or let it answer every class: --answer-only all"
        )
    return level


class Refused(NamedTuple):
    """The rows of a stand-in's outputs that may not answer: `impossible` ones cannot be right,
    `unsure` ones are below the gate's threshold."""

    impossible: Sequence[int]
    unsure: Sequence[int]


class OutputGate:
    """Decides which inputs stand-ins may see, and which of their outputs may answer.

    Args:
        chosen: The gate of each stand-in, by the source of its answers. A stand-in without one is
            never too unsure.
        envelope: The inputs that the stand-ins learned from. Without one, only rows with non-finite
            values are unlike, or impossible.
        calibrations: The calibrations of stand-ins, with a gate or without.

    """

    def __init__(
        self,
        chosen: Mapping[Source, ChosenGate] | None = None,
        envelope: Envelope | None = None,
        calibrations: Mapping[Source, Calibration] | None = None,
    ) -> None:
        self.chosen = chosen or {}
        self.calibrations = {source: each.calibration for source, each in self.chosen.items()}
        self.calibrations |= calibrations or {}
        self.curves = {source: curve_of(each) for source, each in self.calibrations.items()}
        """The doubt of each calibrated stand-in's outputs, by their confidence."""
        self._envelope = envelope
        self._gates = {
            source: Gate(each.calibration.confidence, each.level)
            for source, each in self.chosen.items()
        }

    def unlike(self, rows: Array) -> Sequence[int]:
        """Return the rows (n, *input shape) that only the deployed model may answer."""
        envelope = self._envelope
        if envelope is None:
            return _not_finite(rows)
        names = [each.name for each in envelope.inputs]
        unlike = envelope.unlike(dict(zip(names, tensors_in(rows), strict=True)))
        return np.flatnonzero(unlike).tolist()

    def refused(self, source: Source, outputs: Array) -> Refused:
        """Return the rows of `outputs` (n, *output shape) that may not answer."""
        envelope, gate = self._envelope, self._gates.get(source)
        if envelope is None:
            impossible = _not_finite(served(outputs))
        else:
            impossible = np.flatnonzero(envelope.impossible(served(outputs))).tolist()
        unsure = () if gate is None else np.flatnonzero(gate.refused(outputs)).tolist()
        return Refused(impossible, unsure)

    def doubts(self, source: Source, outputs: Array) -> NDArray[np.float64]:
        """Return the probabilities (n,) that `outputs` (n, *output shape) differ from the model's
        predictions, as calibrated; 1 without a calibration."""
        if source not in self.curves:
            return np.ones(len(outputs))
        kind, curve = self.calibrations[source].confidence, self.curves[source]
        return curve.of(confidences(kind, outputs))


def _not_finite(rows: Array) -> Sequence[int]:
    """Return which rows (n, *shape), maybe records, have a value that is not finite."""
    found: set[int] = set()
    for tensor in tensors_in(rows):
        if tensor.dtype.kind != "f":
            continue
        values = tensor.ravel()
        if tensor.dtype.itemsize >= 4 and isfinite(values.dot(values)):  # twice as fast as isfinite
            continue
        finite = np.isfinite(tensor).reshape(len(rows), -1)
        found.update(np.flatnonzero(~finite.all(axis=1)).tolist())
    return sorted(found)
