"""Whether a stand-in's output may answer, and how probably it differs from the model's.

A judge starts from the stand-in's calibration, and learns from comparisons in service. There are
two populations: queries drawn at random among those that the model answered in time, and those for
which the stand-in was asked, as they were late. The gate's promise holds for both.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from math import isnan
from time import time
from typing import Any, Final, NamedTuple, Self

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.tasks.metrics import Agreement
from parity_models.trust.agreement import LEARNED_RISK, Comparison, LearningGate
from parity_models.trust.doubt import Doubts, fit_doubt
from parity_models.trust.evidence import (
    DoubtCurve,
    Evidence,
    EvidenceStore,
    GateState,
    Learned,
)
from parity_models.trust.gate import (
    EVERYTHING,
    NOTHING,
    Gate,
    classes_of,
    confidences,
    refused,
    served,
    suited,
)

Array = NDArray[Any]

_log = logging.getLogger(__name__)

FIRST: Final = 200
"""Comparisons of a stand-in without a calibration from which thresholds are taken."""

MAX_TURNS: Final = 64
"""The most turns of a gate that are remembered."""


class Verdict(NamedTuple):
    """A verdict on each of n outputs."""

    refused: NDArray[np.bool_]
    """(n,): it may not answer."""
    doubts: NDArray[np.float64]
    """(n,): the probability that the model's output differs."""


@dataclass
class Seen:
    """Comparisons of queries in time since the gate last turned: all, those whose output may
    answer, and those of them that agreed."""

    total: int = 0
    answers: int = 0
    agreed: int = 0


class Turn(NamedTuple):
    """The time when a gate opened further or stepped back, and the evidence for that."""

    time: float
    """Seconds since 1970."""
    opened: bool
    late: bool
    """The evidence is of late queries."""
    total: int
    """Comparisons of queries in time: if it opened, all since it last stepped back."""
    answers: int
    """Those of them whose output may answer: from now on if it opened, or before."""
    agreed: int

    @property
    def coverage(self) -> float:
        """The share of queries that it may answer; 0 if it stepped back, as that is to be seen."""
        return self.answers / self.total if self.opened and self.total else 0.0

    def __str__(self) -> str:
        if not self.opened:
            given = "late queries" if self.late else "queries in time"
            return (
                f"stepped back, as its outputs for {given} agree too seldom with the model's; have "
                "the queries changed since the stand-in was trained?"
            )
        seen = f"{self.agreed:,} of {self.answers:,} such outputs agreed"
        return f"opened further: it covers {self.coverage:.1%} of the queries; {seen}"


class StandInJudge:
    """Judges the outputs of one stand-in.

    Args:
        gate: Its gate, and calibration.
        differ: The share of all answers that may differ; None if there is no such budget.
        learned: What it has learned before, which is kept up to date.
        others: What other servers have learned.
        on_turn: Called when the gate has opened further or stepped back.

    """

    def __init__(
        self,
        gate: Gate,
        differ: float | None = None,
        learned: Learned | None = None,
        others: Sequence[Learned] = (),
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self.gate, calibration = gate, gate.calibration
        self._on_turn = on_turn
        self.learned = Learned() if learned is None else learned
        self.doubts: Doubts | None = None
        """None until enough outputs of a stand-in without a calibration were compared."""
        self._others = others
        self._differ = 1.0 if differ is None else differ
        self._agrees = Agreement(calibration.kind, calibration.tolerance)
        self._confidence = calibration.confidence if calibration.queries else None
        self._gates: dict[bool, dict[int | None, LearningGate]] = {False: {}, True: {}}
        """For queries in time and late ones (True), and by class; by None for all classes."""
        self._limits: dict[int | None, float] = {}
        self._barred: set[int] = set()
        self._first: list[Comparison] = []
        self.turns: deque[Turn] = deque(maxlen=MAX_TURNS)
        """The last times that the gate opened further or stepped back."""
        self._seen = Seen()
        kept = [x.comparisons for x in (self.learned, *others) if x.comparisons is not None]
        if calibration.curve is not None:
            self._begin(calibration.curve)
        elif kept:
            self._begin_unknown(kept[0].thresholds)

    @classmethod
    def of(
        cls,
        source: Source,
        gate: Gate,
        differ: float | None = None,
        store: EvidenceStore | None = None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> Self:
        """Return the judge of the stand-in `source`. It logs the turns of the gate; what it learns
        is kept in the `store`, if there is one."""

        def turned(turn: Turn) -> None:
            level = logging.INFO if turn.opened else logging.WARNING
            _log.log(level, "the gate of the %s %s", source, turn)
            if store is not None:
                store.save()
            on_turn(turn)

        if store is None:
            return cls(gate, differ, on_turn=turned)
        learned, others = store.learned(source), store.learned_by_others(source)
        return cls(gate, differ, learned, others, turned)

    def _begin(self, calibrated: DoubtCurve) -> None:
        """Judge outputs by this curve and its thresholds."""
        learned, bins = self.learned, calibrated.confidences
        if learned.comparisons is None or learned.comparisons.thresholds != bins:
            learned.comparisons, learned.gates, learned.curve = Evidence(bins), {}, None
        known = Evidence(bins)
        for each in self._others:
            is_older = each.curve is None and learned.curve is not None
            if each.comparisons is not None and not is_older:
                known += each.comparisons
        curve = learned.curve or calibrated
        self.doubts = Doubts(curve, self._differ, known, learned.comparisons)
        now, starts = time(), self.gate.starts
        for late, number in product((False, True), starts):
            level, threshold = starts[number]
            name = f"{level:g} {'late' if late else 'in time'}"
            name += "" if number is None else f" {number}"
            start = EVERYTHING if late else threshold
            state = learned.gates.get(name, GateState(Evidence(bins), start))
            states = [each.gates[name] for each in self._others if name in each.gates]
            past = [each for each in states if each.changed <= now]  # a clock may have been wrong
            newest = max((state, *past), key=lambda each: each.changed)
            if newest is not state:  # another server's gate has stepped back since
                state = replace(newest, evidence=Evidence(bins), barred=[*newest.barred])
            known = Evidence(bins)
            if not (late or state.changed) and number is None:
                known += calibrated.comparisons
            for other in states:
                if other.changed >= state.changed:
                    known += other.evidence
            risk = LEARNED_RISK / len(starts)
            self._gates[late][number] = LearningGate(level, start, known, state, risk=risk)
            learned.gates[name] = state
        self._set_limits()
        self._count_again()

    def _begin_unknown(self, thresholds: tuple[float, ...]) -> None:
        """Judge outputs by these thresholds; calibration says nothing of their doubts."""
        self._begin(DoubtCurve(thresholds, (1.0,) * len(thresholds)))

    @property
    def is_open(self) -> bool:
        """True if any output may answer."""
        limits = self._limits.values()
        return self.gate.level is None or any(each < NOTHING for each in limits)

    @property
    def asks(self) -> bool:
        """True if any output may answer, as far as queries in time tell. The stand-in is asked for
        late queries then, which can show that it agrees for these again."""
        gates = self._gates[False].values()
        return self.gate.level is None or any(each.threshold < NOTHING for each in gates)

    @property
    def coverage(self) -> float:
        """The share of queries that the gate lets it answer: of those in time that were compared
        since it last turned or, before there are any, of those that calibrated it."""
        if self._seen.total:
            return self._seen.answers / self._seen.total
        return self.gate.coverage if self.is_open else 0.0

    @property
    def factor(self) -> float:
        """The number by which its doubts are multiplied, as the audit has shown."""
        return 1.0 if self.doubts is None else self.doubts.factor

    @property
    def differing(self) -> tuple[float, float]:
        """How many of its answers differ, since the budget last changed: estimated, and at most
        (95 %)."""
        return (0.0, 0.0) if self.doubts is None else self.doubts.differing

    def answered(self, doubt: float) -> None:
        """Count an answer of this doubt."""
        if self.doubts is not None:
            self.doubts.answered(doubt)

    def change(self, differ: float) -> None:
        """Judge for another budget from now on."""
        self._differ = differ
        if self.doubts is not None:
            self.doubts.change(differ)

    def judge(self, outputs: Array) -> Verdict:
        """Return the verdict on `outputs` (n, *output shape). Refused are those below the gate,
        those that are not finite and, with a budget, all while nothing is known of doubts."""
        sure = self._confidences(outputs)
        doubts = np.ones(len(sure)) if self.doubts is None else self.doubts.of(sure)
        if self.gate.level is not None:
            return Verdict(refused(sure, outputs, self._limits, self._barred), doubts)
        return Verdict(np.isnan(sure) | (self.doubts is None and self._differ < 1), doubts)

    def compare(
        self,
        output: Array,
        prediction: Array,
        makers: Collection[str] = ("model",),
        tenant: Hashable = None,
        *,
        late: bool,
        answered: bool = False,
    ) -> bool | None:
        """Compare an output with the model's prediction for the same query (both *output shape).

        Args:
            output: The stand-in's, with its head's if it has one.
            prediction: The model's.
            makers: The instances that made the two.
            tenant: The tenant whose query it was.
            late: Whether the query was late, so that the stand-in was asked for it.
            answered: Whether the stand-in's output was the answer.

        Returns:
            Whether they agree; None if one of the two is not finite, which is no comparison.

        """
        outputs = np.asarray(output)[np.newaxis]
        confidence = float(self._confidences(outputs)[0])
        if isnan(confidence) or not np.isfinite(prediction).all():
            return None
        agreed = bool(self._agrees(served(outputs), prediction[np.newaxis])[0])
        said = int(classes_of(outputs)[0]) if self._agrees.kind == "classes" else 0
        comparison = Comparison(confidence, agreed, makers, tenant, said)
        if self.doubts is not None:
            if not late:
                self.doubts.compared(confidence, differed=not agreed)
            self._saw(comparison, late=late)
            if answered and self.doubts.audited(confidence, differed=not agreed):
                self.learned.curve = self.doubts.curve
        elif not late:
            self._first.append(comparison)
            if len(self._first) == FIRST:
                self._begin_with_first()
        return agreed

    def _saw(self, comparison: Comparison, *, late: bool) -> None:
        gates, said = self._gates[late], comparison.said
        number = said if said in gates else None
        floor = self._limits.get(number, NOTHING)
        answers = comparison.confidence >= floor and said not in self._barred
        if not late:
            self._seen.total += 1
            self._seen.answers += answers
            self._seen.agreed += answers and comparison.agreed
        gate = gates.get(number)
        if gate is None:
            return
        before = gate.threshold, len(gate.barred)
        if gate.saw(comparison, floor):
            opened = (gate.threshold, len(gate.barred)) < before
            self._set_limits()
            seen = self._seen
            self._count_again()
            if opened and self._seen.total:
                seen = self._seen
            self.turns.append(Turn(time(), opened, late, *astuple(seen)))
            self._on_turn(self.turns[-1])

    def _begin_with_first(self) -> None:
        """Take thresholds from the first comparisons; the doubt of each is fitted to others."""
        first, self._first = self._first, []
        sure, agreed = zip(*((each.confidence, each.agreed) for each in first), strict=True)
        self.learned.comparisons = fit_doubt(np.array(sure), np.array(agreed)).comparisons
        self._begin_unknown(self.learned.comparisons.thresholds)
        for each in first:
            self._saw(each, late=False)
        self._count_again()

    def _count_again(self) -> None:
        """Count what the gate, as it is now, would have let answer, as far as that is known."""
        gate = self._gates[False].get(None)
        self._seen = Seen()
        if gate is not None and not self._barred:
            self._seen = Seen(gate.evidence.total, *gate.evidence.since(self._limits[None]))

    def _confidences(self, outputs: Array) -> NDArray[np.float64]:
        if self._confidence is None:
            self._confidence = suited(self._agrees.kind, outputs)
        return confidences(self._confidence, outputs)

    def _set_limits(self) -> None:
        """Compute the thresholds, by class, and the classes that are barred, from all gates."""
        late = self._gates[True]
        gates = [(number, gate, late[number]) for number, gate in self._gates[False].items()]
        self._limits = {number: max(one.threshold, other.threshold) for number, one, other in gates}
        self._barred = {each for _, *both in gates for gate in both for each in gate.barred}
