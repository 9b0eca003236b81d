"""The gates of a server's stand-ins: which of their outputs may answer, and for which inputs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.models.envelope import Envelope
from parity_models.models.gate import Calibration, Gate, GateLevel, StandIn, served
from parity_models.models.signature import tensors_in
from parity_models.roles import BACKUP, Source, source_of

AGREEMENT: Final = 0.99
"""The highest level that a gate gets unless an agreement is asked for."""

Array = NDArray[Any]


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
    bundle: Bundle, roles: Collection[str], agreement: float | None
) -> dict[Source, ChosenGate]:
    """Choose the gate of each stand-in of `bundle` that instances with these `roles` run.

    Args:
        bundle: Has the calibrations.
        roles: The roles of all instances.
        agreement: Choose the lowest level that promises this much; 0 for no gates. None for the
            highest calibrated level up to AGREEMENT.

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
        calibration = bundle.manifest.calibration.get(stand_in)
        level = _level(bundle, stand_in, calibration, agreement)
        if calibration is not None and level is not None:
            chosen[Source(stand_in)] = ChosenGate(calibration, level)
    return chosen


def ungated(bundle: Bundle, roles: Collection[str], agreement: float | None) -> Iterator[str]:
    """Yield a note on each stand-in that answers without a gate, unless that was asked for."""
    if agreement is not None:
        return
    for stand_in in _used(roles):
        calibration = bundle.manifest.calibration.get(stand_in)
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
    bundle: Bundle, stand_in: StandIn, calibration: Calibration | None, agreement: float | None
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

    """

    def __init__(
        self, chosen: Mapping[Source, ChosenGate] | None = None, envelope: Envelope | None = None
    ) -> None:
        self.chosen = chosen or {}
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
