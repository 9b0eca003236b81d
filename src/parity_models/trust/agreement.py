"""A gate that learns: how confident an output must be to agree with the model often enough.

The gate starts at the threshold that calibration has shown, or closed. Comparisons in service move
it both ways:

- It opens on evidence. Each threshold has a betting martingale against the hypothesis that the
  agreement of outputs above it is below the level: the likelihood of what was seen if outputs
  differ at a rate of STAKES times what the level allows, relative to the likelihood if they differ
  at just that rate, averaged over STAKES (Waudby-Smith and Ramdas, JRSS-B 2024). By the inequality
  of Ville it ever reaches 1 / risk with a probability of at most the risk if the hypothesis is
  true. Thresholds are tested in order, towards more coverage, from each of STARTS starts, which
  share the risk; a threshold passes once it and all before it have (fixed sequence testing). So
  the promise holds at every moment, however long the gate learns. The queries of calibration are
  the first comparisons.
- It steps back on evidence. A sequential test, CUSUM (Page, Biometrika 1954), multiplies a
  likelihood ratio with every comparison of an output that may answer: how much likelier its result
  is if the odds of disagreement are ODDS times the level's than if they are the level's. It begins
  anew whenever the ratio is below 1, so that a good past does not hide a bad present. When the
  ratio reaches 1 / FALSE_ALARM, evidence from before the change is forgotten, and the gate steps
  back to what still holds: all classes but one, or a higher threshold, or nothing. While the
  agreement is at its level or above, that happens once in 1 / FALSE_ALARM comparisons at most. If
  the outputs that failed agree again, by the same test the other way round, the martingales begin
  anew; each time they do, less of the risk is left for them.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from math import ceil, log
from time import time
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.trust.evidence import DoubtCurve, Evidence, GateState
from parity_models.trust.gate import EVERYTHING, NOTHING

LEARNED_RISK: Final = 0.015
"""The probability that a gate ever opens too far. Calibration has the rest of 5 %."""

STARTS: Final = (0.1, 0.25, 0.5, 0.75)
"""Sequences of thresholds that are tested begin at such a coverage."""

STAKES: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Rates of disagreement that are bet on, as shares of the rate that the level allows."""

CHECK_EVERY, CHECK_SHARE = 20, 0.01
"""Comparisons between two looks at the martingales, which take some 60 us; at least this share of
those so far."""

ODDS: Final = 3.0
"""Odds of disagreement this many times the level's are detected soon."""

FALSE_ALARM: Final = 1e-6
"""A test fails once in 1 / FALSE_ALARM comparisons at most, if the agreement is at its level."""

FALSE_OPENING: Final = 1e-3
"""A class returns once in 1 / FALSE_OPENING comparisons at most, if its odds are still ODDS times
the level's. Evidence above that also speaks against what is left, if one party's is taken out."""

MAX_REMEMBERED: Final = 16384
"""The most comparisons of a test that are remembered."""

SEARCH_EVERY: Final = 1 / 32
"""Comparisons between two searches for the worst instance and tenant, as a share of those
remembered: a search takes milliseconds."""


class Comparison(NamedTuple):
    """An output of a stand-in, compared with the model's.

    Attributes:
        confidence: The confidence in it.
        agreed: Whether the model agreed.
        makers: The instances that made the two outputs.
        tenant: The tenant whose query it was.
        said: The class that the stand-in said.

    """

    confidence: float
    agreed: bool
    makers: Collection[str] = ("model",)
    tenant: Hashable = None
    said: int = 0


class AgreementTest:
    """Tests whether a share `level` of comparisons agree, until it fails.

    An instance that answers wrongly is no evidence against the stand-in, and a single tenant's
    queries are weak evidence. So a test fails only if the comparisons still speak against the
    level without the worst instance, and suffice without the worst tenant. With `failed`, it tests
    the other way round: whether they agree again.
    """

    def __init__(self, level: float, *, failed: bool = False) -> None:
        wrong = 1 - level
        suspected = ODDS * wrong / (1 + (ODDS - 1) * wrong)
        self._gain = {False: log(suspected / wrong), True: log((1 - suspected) / level)}
        self.failed = failed
        self.begin()

    def begin(self) -> None:
        """Forget all comparisons."""
        self._evidence = 0.0
        self._until_search = 0
        self.seen: deque[Comparison] = deque(maxlen=MAX_REMEMBERED)
        """The comparisons since the suspected change."""

    def saw(self, comparison: Comparison) -> bool:
        """Add a comparison. Return whether the test has turned."""
        gain = self._gain[comparison.agreed]
        self._evidence = max(0.0, self._evidence + (-gain if self.failed else gain))
        if not self._evidence:
            self._until_search = 0
            self.seen.clear()
            return False
        if self.failed:
            return self._evidence >= -log(FALSE_OPENING)
        self.seen.append(comparison)
        return self._evidence >= -log(FALSE_ALARM) and self._is_of_many()

    def _is_of_many(self) -> bool:
        """Return whether the evidence is of several instances and tenants, if there are several."""
        if self._until_search:
            self._until_search -= 1
            if self._until_search:
                return False
            # Comparisons that are forgotten no longer count.
            self._evidence = self._evidence_of(self.seen)
            if self._evidence < -log(FALSE_ALARM):
                return False
        worst = self._without_worst(lambda seen: seen.makers)
        if worst < -log(FALSE_OPENING) or (
            self._without_worst(lambda seen: (seen.tenant,)) < -log(FALSE_ALARM)
        ):
            self._until_search = ceil(SEARCH_EVERY * len(self.seen))
            return False
        return True

    def worst(self, parties: Callable[[Comparison], Collection[Any]]) -> Any:
        """Return the party that most of the evidence is about."""
        against: dict[Hashable, float] = {}
        for seen in self.seen:
            for each in set(parties(seen)):
                against[each] = against.get(each, 0.0) + self._gain[seen.agreed]
        return max(against, key=against.__getitem__)

    def _without_worst(self, parties: Callable[[Comparison], Collection[Hashable]]) -> float:
        """Return the evidence without the worst party; all of it if there is no other."""
        worst = self.worst(parties)
        others = [seen for seen in self.seen if worst not in parties(seen)]
        return self._evidence_of(others) if others else self._evidence

    def _evidence_of(self, comparisons: Iterable[Comparison]) -> float:
        evidence = 0.0
        for seen in comparisons:
            evidence = max(0.0, evidence + self._gain[seen.agreed])
        return evidence

    def holds(self, comparisons: Iterable[Comparison]) -> bool:
        """Return whether these speak for the level: it is ODDS times likelier."""
        return sum(self._gain[each.agreed] for each in comparisons) <= -log(ODDS)


def comparisons_to_open(curve: DoubtCurve, level: float) -> int | None:
    """Return after about how many comparisons, those of calibration included, a gate of this level
    opens if outputs differ as the curve says; None if it never does."""
    compared = np.array(curve.comparisons.compared[::-1], float)
    above = np.cumsum(compared)
    wrong = np.cumsum(compared * curve.doubts[::-1]) / np.maximum(above, 1)
    gain = np.outer(1 - wrong, _gains(level)[0]) + np.outer(wrong, _gains(level)[1])
    by_query = gain.max(axis=1) * above / max(1.0, above[-1])
    needed = log(len(STARTS) * len(STAKES) / LEARNED_RISK) / max(by_query.max(initial=0.0), 1e-12)
    return ceil(needed) if needed < 1e9 else None


def _gains(level: float) -> NDArray[np.float64]:
    """Return what each stake wins by an output that agrees, and by one that differs: (2, stakes)
    logarithms of factors."""
    rates = (1 - level) * np.array(STAKES)
    return np.log(np.stack([(1 - rates) / level, rates / (1 - level)]))


class LearningGate:
    """The least confidence with which outputs of a stand-in may answer.

    Args:
        level: The share of answers that agree with the model's.
        threshold: Where to start: what calibration has shown; NOTHING for a closed gate.
        known: Comparisons of calibration and of other servers, since the gate last stepped back.
        state: The state of an earlier server, which is kept up to date.
        risk: The probability that it ever opens too far.

    """

    def __init__(
        self,
        level: float,
        threshold: float,
        known: Evidence,
        state: GateState | None = None,
        *,
        risk: float = LEARNED_RISK,
    ) -> None:
        self.level, self._risk = level, risk
        self.state = state or GateState(Evidence(known.thresholds), threshold)
        """Its threshold, its own comparisons, and the classes that it bars."""
        self.evidence = Evidence(known.thresholds)
        """All comparisons since it last stepped back."""
        self.evidence += self.state.evidence
        self.evidence += known
        if not self.state.changed:
            self.state.threshold = min(self.state.threshold, threshold)
        self._test = AgreementTest(level)
        self._recovery = AgreementTest(level, failed=True)
        self._barred = {each: AgreementTest(level, failed=True) for each in self.state.barred}
        self._gains = _gains(level)
        self._capital = np.full(len(known.thresholds), -np.inf)
        self._until_check = CHECK_EVERY
        self._learn()

    @property
    def threshold(self) -> float:
        """Outputs with at least this confidence may answer."""
        return self.state.threshold

    @property
    def barred(self) -> Collection[int]:
        """The classes that it does not let answer."""
        return self._barred

    def saw(self, comparison: Comparison, floor: float | None = None) -> bool:
        """Add a comparison. Return whether the gate has opened further or stepped back.

        Outputs with a confidence of at least `floor` may answer; by default, of `threshold`.
        """
        floor = self.threshold if floor is None else floor
        confidence, agreed, said = comparison.confidence, comparison.agreed, comparison.said
        if said in self._barred:
            if confidence < floor or not self._barred[said].saw(comparison):
                return False
            del self._barred[said]
            self.state.barred = [*self._barred]
            return True
        for evidence in (self.evidence, self.state.evidence):
            evidence.add(confidence, differed=not agreed)
        if confidence >= floor and self._test.saw(comparison):
            self._step_back(floor)
            return True
        if self.state.changed and self.threshold > self.state.refuted <= confidence:
            self._recover(comparison)
        self._until_check -= 1
        return not self._until_check and self._learn()

    def _learn(self) -> bool:
        """Open as far as the evidence suffices. Return whether that is further than before."""
        compared, differed, _ = self.evidence.above
        self._until_check = max(CHECK_EVERY, round(CHECK_SHARE * compared[-1]))
        bets = np.outer(compared - differed, self._gains[0]) + np.outer(differed, self._gains[1])
        capital = np.logaddexp.reduce(bets, axis=1) - log(len(STAKES))
        self._capital = np.maximum(self._capital, capital)
        # Each restart gets a part of the risk: 1/2, 1/6, 1/12, ...
        parts = len(STARTS) * (self.state.restarts + 1) * (self.state.restarts + 2)
        passed = self._capital >= log(parts / self._risk)
        bins = len(passed)
        failed = np.append(np.flatnonzero(~passed), bins)  # sentinel
        starts = (np.array(STARTS) * bins).astype(int)
        reached = failed[np.searchsorted(failed, starts)]  # the first to fail, from each start on
        best = int(reached[reached > starts].max(initial=0))
        threshold = NOTHING
        if best:
            threshold = EVERYTHING if best == bins else self.evidence.thresholds[bins - best]
        if threshold >= self.threshold:
            return False
        self.state.threshold = threshold
        self._test.begin()
        return True

    def _step_back(self, floor: float) -> None:
        """Let only those outputs answer that still agree, and forget the time before the change."""
        test, seen = self._test, [*self._test.seen]
        worst = test.worst(lambda each: (each.said,))
        left = [each for each in seen if each.said != worst]
        if test.holds(left):
            self._barred[worst] = AgreementTest(self.level, failed=True)
            self.state.barred = [*self._barred]
        else:
            higher = [each for each in self.evidence.thresholds if each > floor]
            self.state.threshold = next(
                (at for at in higher if test.holds([x for x in seen if x.confidence >= at])),
                NOTHING,
            )
            self.state.refuted = floor
        self.state.changed = time()
        self._forget()
        test.begin()

    def _recover(self, comparison: Comparison) -> None:
        """Add a comparison of an output that may not answer any more."""
        if self._recovery.saw(comparison):
            if self._recovery.failed:
                self._forget()
            self._recovery = AgreementTest(self.level, failed=not self._recovery.failed)

    def _forget(self) -> None:
        self.state.restarts += 1
        self.evidence.clear()
        self.state.evidence.clear()
        self._capital[:] = -np.inf
