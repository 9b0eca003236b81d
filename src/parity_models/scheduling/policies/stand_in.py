"""Estimates of a stand-in's run time and of the share of its answers that are accepted."""

from parity_models.scheduling.run_times import RunTimes

NEWEST = 0.02
"""The weight of the newest answer in the share accepted."""

PRESUMED = 0.5
"""A stand-in's presumed run time until it is measured, in medians of the deployed model."""

FORGOTTEN = 5000
"""The estimates of a stand-in are reset after this many units of the deployed model without a use,
so one that did badly for a while is tried again."""


class StandIn:
    """The estimates of one stand-in; `deployed` are the run times of the deployed model.

    `accepted` is the share of its answers that are accepted: `accepted[False]` for queries that
    asked it first, `accepted[True]` for those after a refusal, which are harder. Times in seconds.
    """

    def __init__(self, deployed: RunTimes) -> None:
        self._deployed = deployed
        self._forget()

    @property
    def run_times(self) -> RunTimes:
        """Its run times, or the deployed model's until they are known."""
        return self._deployed if self._own.median is None else self._own

    @property
    def is_measured(self) -> bool:
        """True if enough of its units have run lately."""
        return self._own.median is not None

    @property
    def takes(self) -> float:
        """The median run time, presumed until measured; 0 while the deployed model's is unknown."""
        return self._own.median or PRESUMED * (self._deployed.median or 0.0)

    def ran(self, seconds: float, *, finished: bool) -> None:
        """Record the run time of a unit, which ran to its end or not."""
        self._unasked = 0
        self._own.add(seconds, finished=finished)

    def answered(self, *, usable: bool, again: bool = False) -> None:
        """Record whether its answer was accepted; `again`: after another stand-in's refusal."""
        self.accepted[again] += NEWEST * (usable - self.accepted[again])

    def not_asked(self, units: int) -> None:
        """Record that the deployed model has run so many more units."""
        self._unasked += units
        if self._unasked >= FORGOTTEN:
            self._forget()

    def _forget(self) -> None:
        self._own = RunTimes(window=300, every=20)
        self._unasked = 0
        self.accepted = {False: 1.0, True: 1.0}
