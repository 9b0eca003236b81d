"""The gates of a bundle's and a server's stand-ins: the level of agreement that each must keep."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError, spell
from parity_models.printed import Printed
from parity_models.roles import Source, source_of
from parity_models.tensors.signature import tensors_in
from parity_models.trust.agreement import comparisons_to_open
from parity_models.trust.doubt import Doubts, queries_to_show
from parity_models.trust.envelope import Envelope
from parity_models.trust.evidence import EvidenceStore
from parity_models.trust.gate import (
    AGREEMENT,
    DEFAULT,
    Calibration,
    Gate,
    RequestedLevel,
    StandIn,
    served,
)
from parity_models.trust.judge import StandInJudge

if TYPE_CHECKING:
    from rich.console import RenderableType

Array = NDArray[Any]


UNKNOWN: Final = Calibration("classes", 0.0, "scores", 0, 0.0)
"""Of a stand-in that is not calibrated: classes are compared."""


class Calibrations(Printed, dict[StandIn, Calibration]):
    """The calibrations of a bundle's stand-ins, printed as the gates that they allow.

    Args:
        calibrations: The calibration of each stand-in.
        path: The bundle's folder.
        digest: A digest of all that evidence on the stand-ins depends on.

    """

    def __init__(
        self, calibrations: Mapping[StandIn, Calibration], path: Path, digest: str
    ) -> None:
        super().__init__(calibrations)
        self.path, self._digest = path, digest

    def evidence(self, folder: Path | None = None, *, keep: bool = True) -> EvidenceStore:
        """Return the evidence on the stand-ins, kept in `folder`, by default within the bundle."""
        return EvidenceStore(folder or self.path / "evidence", self._digest, keep=keep)

    def learned(self) -> Iterator[str]:
        """Yield what service has taught of each stand-in, if it was compared."""
        store = self.evidence(keep=False)
        for name, calibration in self.items():
            others = store.learned_by_others(Source(name))
            judge = StandInJudge(Gate.at(calibration), others=others)
            total = sum(each.comparisons.total for each in others if each.comparisons is not None)
            if total:
                yield (
                    f"{name}: service has added {total:,} comparisons; a gate of {AGREEMENT:g} now "
                    f"lets {judge.coverage:.1%} of the queries be answered"
                )

    @property
    def parts(self) -> "Sequence[RenderableType]":
        """A table, and sentences on stand-ins without a gate."""
        from rich.table import Table  # here: a server prints no gates

        table = Table(title="gates: where stand-ins may answer", title_justify="left")
        table.add_column("stand-in", min_width=14)
        for column in ("level", "agreement", "coverage", "queries"):
            table.add_column(column, justify="right")
        for stand_in, calibration in self.items():
            name, queries = str(stand_in), f"{calibration.queries:,}"
            for level in calibration.levels:
                for each in (level, *level.classes):
                    if each.number is not None:
                        name = f"  {calibration.allowed[each.number]}"
                    shares = f"{each.agreement:.4f}", f"{each.coverage:.1%}"
                    table.add_row(name, f"{each.level:g}", *shares, queries)
                    name = queries = ""
        notes = [*closed({Source(name): Gate.at(each) for name, each in self.items()})]
        notes += (
            f"{name}: {each.curve.queries:,} queries show budgets from "
            f"{each.curve.smallest_shown:.2%} of all answers on ({spell('differ')})"
            for name, each in self.items()
            if each.curve is not None
        )
        notes += self.learned()
        if not self:
            notes.append("no stand-in is calibrated, so none answers until enough were compared")
        return [*([table] if any(each.levels for each in self.values()) else []), *notes]


def choose_gates(
    calibrations: Calibrations,
    roles: Collection[str],
    agreement: RequestedLevel = DEFAULT,
    *,
    budgeted: bool = False,
) -> dict[Source, Gate]:
    """Choose the gate of each stand-in of a bundle that instances with these `roles` run.

    A gate whose level calibration has not shown starts closed, and opens on evidence. A stand-in
    that is not calibrated has the calibration UNKNOWN.

    Args:
        calibrations: The bundle's.
        roles: The roles of all instances.
        agreement: The level; None or 0 for no gates. By default the highest calibrated level up to
            AGREEMENT, or AGREEMENT if there is none.
        budgeted: The policy has a budget of answers that may differ. The default is no gate then,
            except for stand-ins that may answer some classes only.

    Raises:
        UserError: There are no stand-ins, or one limited to some classes would answer without a
            gate.

    """
    used = {source_of(role) for role in roles}
    stand_ins = [each for each in get_args(StandIn) if each in used]
    if agreement and agreement != DEFAULT and not stand_ins:
        raise UserError(
            "this policy has no stand-in whose agreement could be chosen; leave "
            f"{spell('agreement')} out, or serve with a policy that uses the bundle's parity "
            "model or backup"
        )
    chosen = {}
    for stand_in in stand_ins:
        source, calibration = Source(stand_in), calibrations.get(stand_in, UNKNOWN)
        if not agreement and calibration.allowed:
            classes = ", ".join(calibration.allowed.values())
            raise UserError(
                f"the {source} of {calibrations.path} may answer {classes} only, and without a "
                f"gate it would answer every class; leave {spell('agreement')} out, or let it "
                f"answer every class: parm calibrate {calibrations.path} --inputs FILE "
                "--answer-only all"
            )
        if not agreement or (agreement == DEFAULT and budgeted and not calibration.allowed):
            chosen[source] = Gate(calibration)
        elif isinstance(agreement, str):
            shown = calibration.at_most(AGREEMENT)
            chosen[source] = Gate(calibration, AGREEMENT if shown is None else shown.level, shown)
        else:
            chosen[source] = Gate.at(calibration, agreement)
    return chosen


def doubtful(gates: Mapping[Source, Gate], bundle: Path, differ: float) -> Iterator[str]:
    """Yield a note on each stand-in whose calibration says too little for a budget `differ`."""
    calibrate = f"parm calibrate {bundle} --inputs FILE"
    for source, gate in gates.items() if 0 < differ < 1 else ():
        calibration, curve = gate.calibration, gate.calibration.curve
        if curve is None:
            yield (
                f"the {source} is not calibrated, so it answers nothing until enough of its "
                f"outputs were compared with the model's; it starts at once if you calibrate it: "
                f"{calibrate}"
            )
            continue
        if calibration.confidence == "none" and curve.doubts[0] > differ:
            yield (
                f"the {source} does not say how sure it is of an output, and "
                f"{curve.doubts[0]:.2%} of them differ from the model's: within "
                f"{spell('differ', differ)}, it answers at most "
                f"{differ / curve.doubts[0]:.2%} of all queries"
            )
        shown = Doubts(curve, differ).smallest_shown
        if shown > differ:
            yield (
                f"the calibration of the {source} cannot show that at most {differ:.3%} of all "
                f"answers differ, but {shown:.3%}, until enough answers are compared; "
                f"{queries_to_show(differ):,} held-out queries could show it: {calibrate}"
            )


def closed(gates: Mapping[Source, Gate]) -> Iterator[str]:
    """Yield a note on each gate that starts closed."""
    for source, gate in gates.items():
        curve = gate.calibration.curve
        if gate.level is None or gate.shown is not None:
            continue
        if curve is None:
            yield (
                f"the gate of the {source} starts closed, as it is not calibrated; it opens once "
                f"enough outputs were compared with the model's to show an agreement of "
                f"{gate.level:g}"
            )
            continue
        after = comparisons_to_open(curve, gate.level)
        yield (
            f"the gate of the {source} starts closed, as {gate.calibration.queries:,} queries of "
            f"calibration do not show an agreement of {gate.level:g}; "
            + (
                "nor do they tell when it may open: calibrate with more queries"
                if after is None
                else f"it may open after some {after:,} comparisons in service"
            )
        )


class OutputGate:
    """Decides which inputs stand-ins may see, and which of their outputs are possible.

    Args:
        gates: The gate of each stand-in, by the source of its answers.
        envelope: The inputs that the stand-ins learned from. Without one, only rows with non-finite
            values are unlike, or impossible.

    """

    def __init__(
        self,
        gates: Mapping[Source, Gate] | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        self.gates = gates or {}
        self._envelope = envelope
        self._names = [] if envelope is None else [each.name for each in envelope.inputs]

    def unlike(self, rows: Array) -> Sequence[int]:
        """Return the rows (n, *input shape) that only the deployed model may answer."""
        envelope = self._envelope
        if envelope is None:
            return _not_finite(rows)
        if rows.dtype.names is None:
            unlike = envelope.unlike({self._names[0]: rows})
        else:
            unlike = envelope.unlike(dict(zip(self._names, tensors_in(rows), strict=True)))
        # NumPy takes longer for one row.
        return np.flatnonzero(unlike).tolist() if True in unlike.tolist() else ()

    def impossible(self, outputs: Array) -> Sequence[int]:
        """Return the rows of a stand-in's `outputs` (n, *output shape) that cannot be right."""
        outputs = served(outputs)
        if self._envelope is None:
            return _not_finite(outputs)
        return np.flatnonzero(self._envelope.impossible(outputs)).tolist()


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
