"""Do a stand-in's answers still agree with the model as often as they should? A sequential test.

Every comparison multiplies a likelihood ratio: how much likelier is what was seen if the odds of
disagreement are ODDS times those of the level, than if they are those of the level. A test begins
with a ratio of 1, and begins anew whenever the ratio is below that, so that a good past does not
hide a bad present (CUSUM: Page, Biometrika 1954). It closes the gate when the ratio reaches 1 /
FALSELY. By the inequality of Ville, a test does so with a probability of at most FALSELY while the
agreement is at its level or above, however long it goes on. A closed gate is tested the other way
round, and opens at 1 / TOO_SOON.
"""

from collections import Counter, deque
from collections.abc import Sequence
from math import log
from typing import Final

ODDS: Final = 3.0
"""How many times worse than at the level the odds of disagreement are to be found out soon."""

FALSELY: Final = 1e-6
"""The probability that a test closes the gate though the agreement is at its level."""

TOO_SOON: Final = 1e-3
"""The probability that a test opens it though the odds are still ODDS times those of the level."""

REMEMBERED: Final = 4096
"""Comparisons of a test at most of which it is known which instances they are of."""


class AgreementWatch:
    """Watches comparisons of answers, of which a share `level` should agree: is the gate open?

    What one instance answers wrongly says nothing of the stand-in: a gate does not close if without
    the instance that took part in most disagreements the others' comparisons speak for it.
    """

    def __init__(self, level: float) -> None:
        wrong = 1 - level
        suspected = ODDS * wrong / (1 + (ODDS - 1) * wrong)
        self._gain = {False: log(suspected / wrong), True: log((1 - suspected) / level)}
        self._evidence = 0.0
        self._seen: deque[tuple[bool, Sequence[str]]] = deque(maxlen=REMEMBERED)
        self.open = True

    def saw(self, agreed: bool, makers: Sequence[str]) -> bool:
        """An answer has been compared, made and checked by the instances `makers`: has the gate
        opened or closed thereby?"""
        gain = self._gain[agreed]
        self._evidence = max(0.0, self._evidence + (gain if self.open else -gain))
        if not self._evidence:
            self._seen.clear()
            return False
        if self.open:
            self._seen.append((agreed, makers))
        if self._evidence < -log(FALSELY if self.open else TOO_SOON):
            return False
        if self.open and not self._is_of_many():
            return False
        self.open = not self.open
        self._evidence = 0.0
        self._seen.clear()
        return True

    def _is_of_many(self) -> bool:
        """Do others, if there are any, than the one that disagreed most speak against the gate?"""
        disagreements = Counter(
            maker for agreed, makers in self._seen if not agreed for maker in set(makers)
        )
        if not disagreements:
            return True
        ((worst, _),) = disagreements.most_common(1)
        others = [self._gain[agreed] for agreed, makers in self._seen if worst not in makers]
        return not others or sum(others) > 0
