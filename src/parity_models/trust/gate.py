"""The gate: a stand-in answers only if it can be expected to agree with the deployed model.

A stand-in's confidence in an output is compared with a threshold that was calibrated on held-out
queries (`trust.calibration`), for each of some levels of agreement.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, nan, prod
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.options import Option
from parity_models.tasks.metrics import AgreementKind
from parity_models.trust.evidence import DoubtCurve

Array = NDArray[Any]

StandIn = Literal["reconstruction", "backup"]
"""A stand-in for the deployed model, named as the source of its answers."""

Confidence = Literal["scores", "probabilities", "none", "head"]
"""The confidence in an output: the log-odds of its largest softmax value or largest probability;
none, if nothing in an output predicts agreement; or the output of the stand-in's head."""

HEAD = "parm_agreement"
"""The output (n, 1) of a stand-in's head: the log-odds that F agrees. Clients never get it."""

CERTAIN = 1e-30
"""Smaller probabilities count as this one, so that log-odds are finite."""

EVERYTHING, NOTHING = -1e9, 1e9
"""Thresholds below and above every confidence, as JSON has no infinity."""

ANY_CLASS = "all"
"""Lifts a restriction to some classes."""

AGREEMENT = 0.99
"""The level of a gate unless an agreement is asked for."""

DEFAULT: Final = "default"
"""In place of an agreement: the policy decides about gates, as `trust.gates.choose_gates` says."""

RequestedLevel = float | Literal["default"] | None
"""The agreement of gates that is asked for; None or 0: no gates."""

LEAST_LEVEL = 0.01
"""The lowest level of agreement."""

AGREEMENT_OPTION = Option(
    "Minimum agreement of single answers of stand-ins: a gate. 0: no gates.",
    unit="share",
    ge=0,
    lt=1,
)

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class AnsweredClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class that a stand-in may answer, at a `level` of agreement of its own or above.

    `number` is its place among a model's scores. `level` 0: the one that is chosen for all classes.
    """

    number: Annotated[int, msgspec.Meta(ge=0)]
    name: str
    level: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.0


class GateLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Outputs with a confidence of at least `threshold` agree with F in a share `level` of cases.

    `coverage` is the share of calibration queries that have such an output, `agreement` the share
    of these that agreed. With `classes`, the gate is one-sided: `threshold` is above every
    confidence, and only outputs of these classes may answer. Each has a level of its own, for
    outputs whose largest score is that of the class `number`.
    """

    level: Annotated[float, msgspec.Meta(ge=LEAST_LEVEL, lt=1.0)]
    threshold: float
    coverage: Share
    agreement: Share
    classes: tuple["GateLevel", ...] = ()
    number: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if any(each.number is None or each.classes for each in self.classes):
            raise ValueError("each class of a gate has a number, and no classes")

    @property
    def thresholds(self) -> dict[int | None, float]:
        """The threshold of each class that may answer, by number; of all by None, if all may."""
        return {each.number: each.threshold for each in self.classes or (self,)}


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The gate of one stand-in, with the levels that it can reach, ascending.

    `kind` and `tolerance` define agreement (`tasks.metrics.Agreement`); `confidence` is compared
    with thresholds. Tests on `queries` queries leave a probability of at most `risk` that the true
    agreement at any level is below that level. If there are classes in `answer_only`, no other
    class is answered at any level. `curve` gives the doubt of single outputs; without one, or any
    calibration, a stand-in answers nothing until enough of its outputs were compared in service.
    """

    kind: AgreementKind
    tolerance: Annotated[float, msgspec.Meta(ge=0.0)]
    confidence: Confidence
    queries: Annotated[int, msgspec.Meta(ge=0)]
    risk: Share
    levels: tuple[GateLevel, ...] = ()
    answer_only: tuple[AnsweredClass, ...] = ()
    curve: DoubtCurve | None = None

    @property
    def allowed(self) -> dict[int, str]:
        """The classes in `answer_only`: their names by number."""
        return {each.number: each.name for each in self.answer_only}

    def at_most(self, level: float) -> GateLevel | None:
        """Return the highest calibrated level that is not above `level`."""
        return next((each for each in reversed(self.levels) if each.level <= level), None)

    def at_least(self, level: float) -> GateLevel | None:
        """Return the lowest calibrated level that is not below `level`, which promises as much."""
        return next((each for each in self.levels if each.level >= level), None)


@dataclass(frozen=True)
class Gate:
    """The gate of a stand-in: its `level`, and what calibration has `shown` of it, if anything.

    Without a level, there is no gate: every output may answer.
    """

    calibration: Calibration
    level: float | None = None
    shown: GateLevel | None = None

    @classmethod
    def at(cls, calibration: Calibration, level: float = AGREEMENT) -> Self:
        """Return the gate of a level, with the lowest calibrated one that promises as much."""
        return cls(calibration, level, calibration.at_least(level))

    @property
    def coverage(self) -> float:
        """The share of queries that it lets through at first."""
        return 0.0 if self.shown is None else self.shown.coverage

    @property
    def classes(self) -> dict[str, float]:
        """The levels of the classes that it lets through, by name; empty if it lets all through."""
        names = self.calibration.allowed
        return {names[each]: level for each, (level, _) in self.starts.items() if each is not None}

    @property
    def starts(self) -> Mapping[int | None, tuple[float, float]]:
        """The level and the first threshold of each class that may answer, by number; of all by
        None, if all may."""
        level, shown, only = self.level, self.shown, self.calibration.answer_only
        if level is None:
            return {}
        if not only:
            return {None: (level, NOTHING if shown is None else shown.threshold)}
        starts: dict[int | None, tuple[float, float]]
        starts = {each.number: (max(level, each.level), NOTHING) for each in only}
        if shown is not None:
            starts |= {each.number: (each.level, each.threshold) for each in shown.classes}
        return starts


def confidences(kind: Confidence, outputs: Array) -> NDArray[np.float64]:
    """Return the confidence in each of `outputs` (n, *output_shape): (n,), NaN if an output is
    not finite or the head is missing."""
    heads = outputs[HEAD] if has_head(outputs) else np.nan
    outputs = served(outputs).reshape(len(outputs), -1)
    if kind == "scores" and len(outputs) == 1:
        return np.array([_log_odds(outputs[0].astype(np.float64))])
    with np.errstate(all="ignore"):
        if kind == "head":
            said = np.broadcast_to(np.ravel(heads), len(outputs)).astype(np.float64)
            return np.where(np.isfinite(outputs).all(axis=1), said, np.nan)
        if kind == "none":
            return np.where(np.isfinite(outputs).all(axis=1), 0.0, np.nan)
        scores = outputs.astype(np.float64)
        if kind == "probabilities":
            scores = np.log(np.maximum(scores, CERTAIN))
        ordered = np.sort(scores, axis=1)  # NaN comes last
        largest = ordered[:, -1]
        others = np.exp(ordered[:, :-1] - largest[:, np.newaxis]).sum(axis=1)
        sure: NDArray[np.float64] = -np.log(np.maximum(others, CERTAIN))
        return np.where(np.isfinite(ordered[:, 0]) & np.isfinite(largest), sure, np.nan)


def _log_odds(scores: NDArray[np.float64]) -> float:
    """Return the confidence in one output of scores (n,), which are sorted in place; NaN if a score
    is not finite. Services judge one output at a time, and this takes half as long for it."""
    scores.sort()
    least, largest = scores.item(0), scores.item(-1)
    if not (isfinite(least) and isfinite(largest)):
        return nan
    return -log(max(np.exp(scores[:-1] - largest).sum().item(), CERTAIN))


def refused(
    confidence: NDArray[np.float64],
    outputs: Array,
    thresholds: Mapping[int | None, float],
    barred: Collection[int] = (),
) -> NDArray[np.bool_]:
    """Return for each of `outputs` (n, *output_shape) whether it may not answer: (n,).

    Args:
        confidence: The confidence in each: (n,). Outputs with NaN never answer.
        outputs: The outputs.
        thresholds: The least confidence of outputs of a class, by number; of any class, by None.
        barred: Classes that may not answer, though any class may.

    """
    if None in thresholds and not barred:
        return np.logical_not(confidence >= thresholds[None])
    answered, said = np.zeros(len(outputs), np.bool_), classes_of(outputs)
    for number, threshold in thresholds.items():
        chosen = said == number if number is not None else ~np.isin(said, [*barred])
        answered |= chosen & (confidence >= threshold)
    return np.logical_not(answered)


def has_head(outputs: Array) -> bool:
    """Return whether these are rows (see Layout) of a stand-in with a head."""
    return outputs.dtype.names is not None and HEAD in outputs.dtype.names


def served(outputs: Array) -> Array:
    """Return a stand-in's `outputs`, one or many, without its head's: a view."""
    if not has_head(outputs):
        return outputs
    return outputs[next(name for name in outputs.dtype.names or () if name != HEAD)]


def classes_of(outputs: Array) -> NDArray[np.int64]:
    """Return the class that each of `outputs` (n, *output_shape) says: (n,)."""
    outputs = served(outputs)
    said: NDArray[np.int64] = outputs.reshape(len(outputs), prod(outputs.shape[1:])).argmax(axis=1)
    return said


def read_classes(said: str, names: Sequence[str], count: int) -> tuple[AnsweredClass, ...]:
    """Return the classes that `said` lists: CLASS or CLASS=LEVEL, with commas; none for "all".

    `names` name the model's `count` classes, if it has names; numbers always work, too.
    Raises UserError for a class that does not exist, or comes twice, and a level out of range.
    """
    numbers = {str(number): number for number in range(count)}
    numbers |= {name: number for number, name in enumerate(names)}
    found: dict[int, AnsweredClass] = {}
    if said == ANY_CLASS:
        return ()
    for part in said.split(","):
        name, given, level = part.strip().partition("=")
        if name not in numbers:
            there = ", ".join(names) if names else f"numbered 0 to {count - 1}"
            raise UserError(f"the model has no class {name!r} to answer; its classes are {there}")
        try:
            least = float(level) if given else 0.0
        except ValueError:
            least = 1.0
        if given and not LEAST_LEVEL <= least < 1:
            raise UserError(
                f"the level of a class is {LEAST_LEVEL:g} or more and below 1, not {level!r}: "
                f"write {name}=0.999"
            )
        number = numbers[name]
        if number in found:
            raise UserError(f"the class {name} is listed twice; list it once")
        found[number] = AnsweredClass(number, names[number] if names else name, least)
    return tuple(found.values())


def suited(kind: AgreementKind, outputs: Array) -> Confidence:
    """Return the measure of confidence for a stand-in that gives `outputs` (n, *output_shape)."""
    if has_head(outputs):
        return "head"
    if kind != "classes":
        return "none"
    probable = (outputs >= 0).all() and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3)
    return "probabilities" if probable else "scores"
