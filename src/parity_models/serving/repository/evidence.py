"""What is known of a canary: how often it fails, and how often it says what the old version says.

Every request of a canary is asked of the old version as well, so that both are judged by the same
ones. It is worse as soon as that is nearly certain: a canary that is only just good enough would
look so bad with a probability of CHANCE at most (Chernoff, 1952; in the form of Hoeffding, 1963,
equation 2.1). With enough evidence, the shares themselves are judged.
"""

from math import exp, log
from typing import NamedTuple

from parity_models.serving.repository.rollout_options import RolloutOptions

CHANCE = 1e-3
"""A canary counts as worse once a barely good one, which fails or differs as often as is allowed,
would look as bad with at most this probability. This holds for few requests, too: where some may
fail, a single failure is not enough."""


class Seen(NamedTuple):
    """A request that both versions were asked: whether each failed; how many predictions of the two
    models were compared, and how many of these differed."""

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
    if count <= allowed * of * (1 + 1e-9):  # 1 - 0.9 is below 0.1
        return False
    return enough or _chance_at_most(count, of, allowed) <= CHANCE


def _chance_at_most(count: int, of: int, allowed: float) -> float:
    """An upper bound of the probability that `count` or more of `of` requests fail or differ, if
    each does with probability `allowed`. `count` is more than that share of them."""
    if not allowed:
        return 0.0
    exponent = count * log(count / of / allowed)
    if count < of:
        exponent += (of - count) * log((1 - count / of) / (1 - allowed))
    return exp(-exponent)
