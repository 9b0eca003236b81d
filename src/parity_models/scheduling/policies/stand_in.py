"""What is known of a stand-in: how long it runs, and how often its answer may be given."""

from parity_models.scheduling.run_times import RunTimes

NEWEST = 0.02
"""The weight of the newest answer in the share accepted."""

PRESUMED = 0.5
"""How long a stand-in takes, in median run times of the deployed model, until that is measured."""

FORGOTTEN = 5000
"""After this many units of the deployed model without being asked, the estimates of a stand-in are
forgotten: so one that did badly for a while is asked again."""


class StandIn:
    """The estimates of one stand-in; `deployed` are the run times of the deployed model.

    `accepted` is the share of its answers that may be given. `accepted[False]` is that for queries
    that asked it first; `accepted[True]` for those that another stand-in's answer was refused for,
    which are harder. Times in seconds.
    """

    def __init__(self, deployed: RunTimes) -> None:
        self._deployed = deployed
        self._forget()

    @property
    def run_times(self) -> RunTimes:
        """Its own; while these are not known, those of the deployed model."""
        return self._deployed if self._own.median is None else self._own

    @property
    def is_measured(self) -> bool:
        """Whether units of it have run lately."""
        return self._own.median is not None

    @property
    def takes(self) -> float:
        """The median; to be asked for once that of the deployed model is known."""
        return self._own.median or PRESUMED * (self._deployed.median or 0.0)

    def ran(self, seconds: float, *, finished: bool) -> None:
        """A unit of it has run for so long, to its end or not."""
        self._unasked = 0
        self._own.add(seconds, finished=finished)

    def answered(self, *, usable: bool, again: bool = False) -> None:
        """It has answered a query that waited for it, `again` if another one was not to."""
        self.accepted[again] += NEWEST * (usable - self.accepted[again])

    def not_asked(self, units: int) -> None:
        """The deployed model has run so many units more."""
        self._unasked += units
        if self._unasked >= FORGOTTEN:
            self._forget()

    def _forget(self) -> None:
        self._own = RunTimes(window=300, every=20)
        self._unasked = 0
        self.accepted = {False: 1.0, True: 1.0}
