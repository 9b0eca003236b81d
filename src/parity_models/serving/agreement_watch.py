"""Do a stand-in's answers still agree with the model as often as they should? A sequential test.

Every comparison multiplies a likelihood ratio: how much likelier is what was seen if the odds of
disagreement are ODDS times those of the level, than if they are those of the level. A test begins
with a ratio of 1, and begins anew whenever the ratio is below that, so that a good past does not
hide a bad present (CUSUM: Page, Biometrika 1954). It closes the gate when the ratio reaches 1 /
FALSELY. By the inequality of Ville, a test does so with a probability of at most FALSELY while the
agreement is at its level or above, however long it goes on. A closed gate is tested the other way
round, and opens at 1 / TOO_SOON.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from math import ceil, log
from typing import Final, NamedTuple

ODDS: Final = 3.0
"""How many times worse than at the level the odds of disagreement are to be found out soon."""

FALSELY: Final = 1e-6
"""The probability that a test closes the gate though the agreement is at its level."""

TOO_SOON: Final = 1e-3
"""The probability that a test opens it though the odds are still ODDS times those of the level."""

REMEMBERED: Final = 16384
"""Comparisons of a test at most of which it is known which instances they are of."""

REMEMBERED_OF_ONE: Final = 512
"""Likewise, of a test of one tenant's queries."""

LOOK_EVERY: Final = 1 / 32
"""Comparisons after which it is looked again whose they are, where they were of one alone, as a
share of those that are remembered: to look at all of them takes milliseconds."""

MAX_TENANTS: Final = 256
"""Tenants whose queries have a test of their own: those for whom the gate is closed, and the latest
of those that disagree."""


class _Seen(NamedTuple):
    """A comparison for a query of `tenant`, made and checked by the instances `makers`."""

    agreed: bool
    makers: Sequence[str]
    tenant: Hashable


class AgreementWatch:
    """Watches comparisons of answers, of which a share `level` should agree: is the gate open?

    What one instance answers wrongly says nothing of the stand-in: a gate does not close unless
    without the instance that took part in most disagreements the others' comparisons speak against
    it, too. Nor does what one tenant asks say much: those of others have to prove the gate wrong.
    """

    def __init__(self, level: float, remembered: int = REMEMBERED) -> None:
        wrong = 1 - level
        suspected = ODDS * wrong / (1 + (ODDS - 1) * wrong)
        self._gain = {False: log(suspected / wrong), True: log((1 - suspected) / level)}
        self._evidence = 0.0
        self._until_look = 0
        self._seen: deque[_Seen] = deque(maxlen=remembered)
        self.open = True
        self.closed_by: frozenset[Hashable] = frozenset()
        """The tenants whose comparisons closed it last."""

    @property
    def suspects(self) -> bool:
        """Is it closed, or does anything speak against it?"""
        return not self.open or self._evidence > 0

    def saw(self, agreed: bool, makers: Sequence[str], tenant: Hashable = None) -> bool:
        """An answer to a query of `tenant` has been compared, made and checked by the instances
        `makers`: has the gate opened or closed thereby?"""
        gain = self._gain[agreed]
        self._evidence = max(0.0, self._evidence + (gain if self.open else -gain))
        if not self._evidence:
            self._begin()
            return False
        if self.open:
            self._seen.append(_Seen(agreed, makers, tenant))
        if self._evidence < -log(FALSELY if self.open else TOO_SOON):
            return False
        if self.open:
            if not self._is_of_many():
                return False
            self.closed_by = frozenset(seen.tenant for seen in self._seen)
        self.open = not self.open
        self._begin()
        return True

    def _begin(self) -> None:
        """Begin a test."""
        self._evidence = 0.0
        self._seen.clear()
        self._until_look = 0

    def _is_of_many(self) -> bool:
        """Is the evidence of more than one tenant and one instance, where there are several?"""
        if self._until_look:
            self._until_look -= 1
            if self._until_look:
                return False
            # Of what was of one alone, it is to be forgotten what is not remembered any more.
            self._evidence = self._evidence_of(self._seen)
            if self._evidence < -log(FALSELY):
                return False
        if self._is_of_one_tenant() or self._is_of_one_instance():
            self._until_look = ceil(LOOK_EVERY * len(self._seen))
            return False
        return True

    def _is_of_one_tenant(self) -> bool:
        """Do the comparisons of others than the tenant whose speak most against the gate, if there
        are any, not prove it wrong?"""
        against: dict[Hashable, float] = {}
        for seen in self._seen:
            against[seen.tenant] = against.get(seen.tenant, 0.0) + self._gain[seen.agreed]
        worst = max(against, key=against.__getitem__)
        others = [seen for seen in self._seen if seen.tenant != worst]
        return bool(others) and self._evidence_of(others) < -log(FALSELY)

    def _is_of_one_instance(self) -> bool:
        """Do the comparisons of others than the instance that took part in most disagreements, if
        there are any, not even speak against the gate by 1 / TOO_SOON?"""
        disagreements = Counter(
            maker for seen in self._seen if not seen.agreed for maker in set(seen.makers)
        )
        if not disagreements:
            return False
        ((worst, _),) = disagreements.most_common(1)
        others = [seen for seen in self._seen if worst not in seen.makers]
        return bool(others) and self._evidence_of(others) < -log(TOO_SOON)

    def _evidence_of(self, comparisons: Iterable[_Seen]) -> float:
        """What speaks against the gate in these alone, in their order."""
        evidence = 0.0
        for seen in comparisons:
            evidence = max(0.0, evidence + self._gain[seen.agreed])
        return evidence


class Turned(NamedTuple):
    """Has a gate opened or closed for everybody, or for a tenant's queries?"""

    for_all: bool
    for_one: bool


class AgreementWatches:
    """Watches all comparisons, and those of each tenant's queries: for whom is the gate open?

    One tenant's queries close it for that tenant alone. If no other tenant's were compared
    meanwhile, it counts as closed for all, and others are answered still.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        self._all = AgreementWatch(level)
        self._of: OrderedDict[Hashable, AgreementWatch] = OrderedDict()

    def __len__(self) -> int:
        """How many tenants are watched by themselves."""
        return len(self._of)

    @property
    def open(self) -> bool:
        """Is it open for all but single tenants?"""
        return self._all.open

    @property
    def closed_by(self) -> frozenset[Hashable]:
        """The tenants whose queries closed it for all; none while it is open. If it is one alone,
        others are answered still."""
        return frozenset() if self._all.open else self._all.closed_by

    @property
    def tenants_shut_out(self) -> int:
        """The number of tenants whose own queries closed it for them."""
        shut_out = {tenant for tenant, own in self._of.items() if not own.open}
        if len(self.closed_by) == 1:
            shut_out |= self.closed_by
        return len(shut_out)

    @property
    def watches_some(self) -> bool:
        """Is there anybody for whom it is closed, or may soon be?"""
        return bool(self._of) or not self._all.open

    def is_open_for(self, tenant: Hashable) -> bool:
        """May the stand-in answer queries of this tenant?"""
        own = self._of.get(tenant)
        if own is not None and not own.open:
            return False
        closed_by = self.closed_by
        return not closed_by or (len(closed_by) == 1 and tenant not in closed_by)

    def saw(self, agreed: bool, makers: Sequence[str], tenant: Hashable) -> Turned:
        """An answer to a query of `tenant` has been compared, made and checked by `makers`."""
        own = self._of.get(tenant)
        if own is not None and not agreed:
            self._of.move_to_end(tenant)
        elif not agreed:
            own = self._watch(tenant)
        turned = own is not None and own.saw(agreed, makers, tenant)
        if own is not None and not own.suspects:
            del self._of[tenant]
        return Turned(self._all.saw(agreed, makers, tenant), turned)

    def _watch(self, tenant: Hashable) -> AgreementWatch | None:
        """Watch one more by itself. If there is no room, the one that has not disagreed for longest
        is forgotten, of those for whom the gate is open; None if it is open for none of them."""
        if len(self._of) >= MAX_TENANTS:
            for oldest, own in self._of.items():
                if own.open:
                    del self._of[oldest]
                    break
            else:
                return None
        self._of[tenant] = AgreementWatch(self._level, REMEMBERED_OF_ONE)
        return self._of[tenant]
