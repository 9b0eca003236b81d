"""What is known of a canary: how often it fails, and how often it says what the old version says.

Every request of a canary is asked of the old version as well, so that both are judged by the same
ones. It is worse as soon as that is nearly certain: a one-sided confidence bound (Wilson, 1927) of
a share lies beyond what is allowed. With enough evidence, the shares themselves are judged.
"""

from math import sqrt
from typing import NamedTuple

from parity_models.serving.repository.rollout_options import RolloutOptions

CERTAIN = 3.0
"""Standard deviations of the bound: looked at again and again, chance seldom gets that far."""


class Seen(NamedTuple):
    """A request that was asked of both: whether each has failed, and of the predictions that their
    models made, how many were compared and how many differed."""

    failed: bool = False
    old_failed: bool = False
    compared: int = 0
    differed: int = 0


class Evidence:
    """What has been seen of a canary since time `began`, in seconds."""

    def __init__(self, options: RolloutOptions, began: float) -> None:
        self._options = options
        self._began = began
        self.requests = self.worse = self.compared = self.differed = 0

    def add(self, seen: Seen) -> None:
        self.requests += 1
        self.worse += seen.failed and not seen.old_failed
        self.compared += seen.compared
        self.differed += seen.differed

    def why_worse(self, now: float) -> str:
        """Why the canary is worse; empty as long as it is not known to be."""
        options = self._options
        enough = self.is_enough(now)
        failures, differences = options.canary_failures, 1 - options.canary_agreement
        if _exceeds(self.worse, self.requests, failures, enough):
            return (
                f"it failed {self.worse} of {self.requests} requests that the old version "
                f"answered, more than {failures:.3g} of them"
            )
        if _exceeds(self.differed, self.compared, differences, enough):
            return (
                f"{self.differed} of {self.compared} predictions differ from the old version's, "
                f"more than {differences:.3g} of them"
            )
        return ""

    def is_enough(self, now: float) -> bool:
        """Has it been compared for long enough to take all requests?"""
        options = self._options
        long = now - self._began >= options.canary_time
        return long and self.compared >= options.canary_predictions

    @property
    def in_words(self) -> str:
        return (
            f"{self.compared} of {self._options.canary_predictions} predictions compared, "
            f"{self.differed} differ; {self.worse} of {self.requests} requests failed"
        )


def _exceeds(count: int, of: int, allowed: float, enough: bool) -> bool:
    if not of:
        return False
    return least_share(count, of) > allowed or (enough and count / of > allowed)


def least_share(count: int, of: int) -> float:
    """The least share that is likely where `count` of so many were seen: Wilson's lower bound."""
    share, z = count / of, CERTAIN
    spread = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (share + z * z / (2 * of) - spread) / (1 + z * z / of)
