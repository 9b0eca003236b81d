"""How much of the time a policy keeps p99 near the undisturbed one, where something goes wrong."""

from collections.abc import Sequence

from parity_models.simulation.trial import TrialResult

NEAR = 1.5
"""How many times the undisturbed p99 is still near it."""


def calm_point(undisturbed: Sequence[int], point: int) -> int | None:
    """The undisturbed point that a point is compared with: the last one before it, if any."""
    before = [each for each in undisturbed if each <= point]
    return max(before, default=None)


def kept(here: TrialResult, calm: TrialResult) -> float:
    """In which share of its parts the p99 of `here` is near that of the run `calm`."""
    near = sum(ms <= NEAR * calm.p99_ms for ms in here.course_ms)
    return near / len(here.course_ms)
