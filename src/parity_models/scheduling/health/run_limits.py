"""How long a unit may take before it counts as hung, learned from the units that finished."""

FACTOR = 20
"""A unit hangs once it has taken this many times as long as the longest recent unit of its role."""

AT_LEAST, SHORTEST, OF_DEADLINE = 1.0, 0.5, 0.5
"""Every unit is given AT_LEAST seconds, or the share OF_DEADLINE of the deadline if that is less,
but never less than SHORTEST seconds: a machine may be busy with something else for a moment."""

BEFORE_DEADLINE, LEAST_FACTOR = 0.75, 5
"""A unit counts as hung at the share BEFORE_DEADLINE of the server's deadline, so before its
queries expire, but not before LEAST_FACTOR times the longest recent unit."""

KNOWN = 100
"""The units of a role that must have finished before any counts as hung."""

WINDOW = 500
"""The longest unit is that of the last WINDOW to twice as many units."""


class RunLimits:
    """The limits of units by role, under a `deadline` for queries. Times in seconds.

    Chosen by simulation (tests/scheduling/health/test_hung.py; units of 20 ms): under shuffles,
    slowdowns, pauses of 0.1, 0.3 and 1 s on average, units 10 times as slow for minutes and run
    times of log-normal sigma 1, no instance is replaced in 20,000 queries, at factors of 5 to 20
    alike. The largest leaves most room for a slowness that begins suddenly on all instances, and
    raises the limit once the first slow units finish.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._at_least = min(AT_LEAST, max(SHORTEST, OF_DEADLINE * deadline))
        self._roles: dict[str, _Longest] = {}

    def finished(self, role: str, seconds: float) -> None:
        longest = self._roles.get(role)
        if longest is None:
            longest = self._roles[role] = _Longest()
        longest.add(seconds)

    def limit(self, role: str) -> float | None:
        """How long a unit of this role may take; None while that is unknown."""
        known = self._roles.get(role)
        if known is None or known.count < KNOWN:
            return None
        longest = known.longest
        in_time = max(BEFORE_DEADLINE * self._deadline, LEAST_FACTOR * longest)
        return max(self._at_least, min(FACTOR * longest, in_time))


class _Longest:
    """The longest of the units in this window and in the one before."""

    __slots__ = ("_before", "_in_window", "_now", "count")

    def __init__(self) -> None:
        self.count = 0
        self._in_window = 0
        self._before = self._now = 0.0

    @property
    def longest(self) -> float:
        return max(self._before, self._now)

    def add(self, seconds: float) -> None:
        self.count += 1
        self._in_window += 1
        if self._in_window > WINDOW:
            self._before, self._now, self._in_window = self._now, 0.0, 1
        if seconds > self._now:
            self._now = seconds
