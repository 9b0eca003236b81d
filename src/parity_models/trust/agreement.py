"""A sequential test of whether a stand-in still agrees with the model as its gate promises.

Every comparison multiplies a likelihood ratio: how much likelier its result is if the odds of
disagreement are ODDS times the level's than if they are the level's. A test begins with a ratio
of 1, and begins anew whenever the ratio is below that, so that a good past does not hide a bad
present (CUSUM: Page, Biometrika 1954). It closes the gate when the ratio reaches 1 /
FALSE_CLOSING. By the inequality of Ville, a test does so with a probability of at most
FALSE_CLOSING while the agreement is at its level or above, however long it goes on. A closed gate
is tested the other way round, and opens at 1 / FALSE_OPENING.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from math import ceil, log
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.tasks.metrics import Agreement
from parity_models.trust.gate import Calibration
from parity_models.trust.gates import ChosenGate

ODDS: Final = 3.0
"""Odds of disagreement this many times the level's are detected soon."""

FALSE_CLOSING: Final = 1e-6
"""The probability that a test closes the gate though the agreement is at its level."""

FALSE_OPENING: Final = 1e-3
"""The probability that a test opens it though the odds are still ODDS times the level's."""

MAX_REMEMBERED: Final = 16384
"""The most comparisons of a test that are remembered, with their instances and tenants."""

SEARCH_EVERY: Final = 1 / 32
"""Comparisons between two searches for the worst instance and tenant, as a share of those
remembered: a search takes milliseconds."""

_SAME_CLASS = Agreement("classes", 0.0)
"""The criterion without a calibration."""


class _Seen(NamedTuple):
    agreed: bool
    makers: Collection[str]
    tenant: Hashable


class AgreementTest:
    """Tests whether a share `level` of comparisons agree; the gate is `open` until the test fails.

    An instance that answers wrongly is no evidence against the stand-in, and a single tenant's
    queries are weak evidence. So a gate closes only if the comparisons still speak against it
    without the worst instance, and suffice to close it without the worst tenant.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        wrong = 1 - level
        suspected = ODDS * wrong / (1 + (ODDS - 1) * wrong)
        self._gain = {False: log(suspected / wrong), True: log((1 - suspected) / level)}
        self._evidence = 0.0
        self._until_search = 0
        self._seen: deque[_Seen] = deque(maxlen=MAX_REMEMBERED)
        self.open = True

    def saw(self, agreed: bool, makers: Collection[str], tenant: Hashable = None) -> bool:
        """Add a comparison.

        Args:
            agreed: Whether stand-in and model agreed.
            makers: The instances that made the two outputs.
            tenant: The tenant whose query it was.

        Returns:
            Whether the gate has opened or closed.

        """
        gain = self._gain[agreed]
        self._evidence = max(0.0, self._evidence + (gain if self.open else -gain))
        if not self._evidence:
            self._begin()
            return False
        if self.open:
            self._seen.append(_Seen(agreed, makers, tenant))
        if self._evidence < -log(FALSE_CLOSING if self.open else FALSE_OPENING):
            return False
        if self.open and not self._is_of_many():
            return False
        self.open = not self.open
        self._begin()
        return True

    def _begin(self) -> None:
        self._evidence = 0.0
        self._seen.clear()
        self._until_search = 0

    def _is_of_many(self) -> bool:
        """Return whether the evidence is of several instances and tenants, if there are several."""
        if self._until_search:
            self._until_search -= 1
            if self._until_search:
                return False
            # Comparisons that are forgotten no longer count.
            self._evidence = self._evidence_of(self._seen)
            if self._evidence < -log(FALSE_CLOSING):
                return False
        if self._hinges_on_one(lambda seen: seen.makers, FALSE_OPENING) or self._hinges_on_one(
            lambda seen: (seen.tenant,), FALSE_CLOSING
        ):
            self._until_search = ceil(SEARCH_EVERY * len(self._seen))
            return False
        return True

    def _hinges_on_one(self, whose: Callable[[_Seen], Collection[Hashable]], chance: float) -> bool:
        """Return whether the comparisons without the worst party, if any, are evidence of less than
        1 / `chance` against the gate."""
        against: dict[Hashable, float] = {}
        for seen in self._seen:
            for each in set(whose(seen)):
                against[each] = against.get(each, 0.0) + self._gain[seen.agreed]
        worst = max(against, key=against.__getitem__)
        others = [seen for seen in self._seen if worst not in whose(seen)]
        return bool(others) and self._evidence_of(others) < -log(chance)

    def _evidence_of(self, comparisons: Iterable[_Seen]) -> float:
        evidence = 0.0
        for seen in comparisons:
            evidence = max(0.0, evidence + self._gain[seen.agreed])
        return evidence


class AgreementWatch:
    """Watches how often the outputs of stand-ins agree with the model's predictions.

    Args:
        chosen: The gate of each stand-in. A stand-in without one stays in service.
        closed: The stand-ins whose gate is closed at first.
        calibrations: Define agreement; a stand-in without one is compared by class.

    """

    def __init__(
        self,
        chosen: Mapping[Source, ChosenGate],
        closed: Collection[Source] = (),
        calibrations: Mapping[Source, Calibration] = MappingProxyType({}),
    ) -> None:
        self._agreements = {
            source: Agreement(each.kind, each.tolerance) for source, each in calibrations.items()
        }
        self._tests = {source: AgreementTest(each.level.level) for source, each in chosen.items()}
        for source, test in self._tests.items():
            test.open = source not in closed

    def is_open(self, source: Source) -> bool:
        """Return whether the stand-in is in service."""
        test = self._tests.get(source)
        return test is None or test.open

    def agree(self, source: Source, output: NDArray[Any], prediction: NDArray[Any]) -> bool:
        """Return whether a stand-in's output agrees with the prediction (both *output shape)."""
        agreement = self._agreements.get(source, _SAME_CLASS)
        return bool(agreement(output[np.newaxis], prediction[np.newaxis])[0])

    def saw(self, source: Source, agreed: bool, makers: Collection[str], tenant: Hashable) -> bool:
        """Add a comparison, as AgreementTest.saw does. Return whether a gate opened or closed."""
        test = self._tests.get(source)
        return test is not None and test.saw(agreed, makers, tenant)
