"""Admission of arriving queries: a query that cannot be in time is refused at once."""

from math import inf
from random import Random

from parity_models.roles import DEPLOYED
from parity_models.scheduling.actions import Reason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.run_times import RecentDurations
from parity_models.scheduling.work import SchedulerConfig, Unit

Refusal = tuple[Reason, str, float]
"""A refusal of queries: the reason, a detail, and the seconds until a retry, jittered so that
clients do not all come at once."""


class Admission:
    """Estimates how long queries wait and run, and refuses any that cannot be in time.

    A server that admits more queries than it can serve answers none in time. So a query is refused
    at once if the queries that wait before it leave it no time to run. The wait follows from the
    measured rate of the instances: the queries that ended, for each second that instances spent on
    the deployed model. Copies, failed and cancelled units, and units that still run count as time
    spent; preemptible units, and those that were lost with their instance, do not.

    A queue may absorb a burst; one that never empties only makes everybody late. While the queue
    has not been empty for a second, a query is taken only if its wait is short: the controlled
    delay of Maurer (Fail at Scale, ACM Queue 13(8), 2015), after Nichols and Jacobson (Controlling
    Queue Delay, ACM Queue 10(5), 2012).

    While all instances stand still, the rate says nothing about those that will be in their place,
    so queries wait. If nothing waits and there are idle instances for all queries of a request,
    they are always taken, and an idle server forgets its estimates. So no estimate, however wrong,
    locks the server up. Times in seconds.
    """

    STANDING, STANDING_RUNS = 1.0, 20
    """A queue is *standing* if it has not been empty for this many seconds and median run times."""

    SHORT, SHORT_RUNS, LEAST_RUNS, SHORT_SHARE = 0.5, 20, 3, 0.05
    """The longest wait allowed in a standing queue: SHORT seconds or SHORT_RUNS median run times,
    whichever is less, but at least LEAST_RUNS median run times and SHORT_SHARE of the time left."""

    SLACK = 1.2
    """The factor by which waits are overestimated, as they vary."""

    LONG_RUN = 0.9
    """The quantile of run times that a query is expected not to exceed."""

    KNOWN = 5
    """The units that must have ended before anything is estimated from them."""

    FORGOTTEN = 10.0
    """Seconds after which an idle server forgets its estimates."""

    NO_INSTANCES_RETRY, LEAST_RETRY = 1.0, 0.1
    """Seconds until a retry while no instance is up, and the minimum otherwise."""

    def __init__(self, config: SchedulerConfig, dispatch: Dispatch) -> None:
        self._config = config
        self._dispatch = dispatch
        self._random = Random(config.seed)
        self._runs = RecentDurations(window=100, every=self.KNOWN)
        self.typical_run = 0.0
        """The median run time of the model; 0 while it is unknown."""
        self.queries_ended = 0.0
        """The queries that did not wait and were answered or failed; old ones count less."""
        self._units = 0
        self._running = 0
        self._spent = 0.0
        self._spent_until = 0.0
        self._empty_at = 0.0
        self._up_at = -inf
        self._last_end = 0.0
        self.progressed = 0.0
        """When any unit, of any role, was last finished, or instances stopped being idle."""

    def spend(self, now: float, started: int = 0) -> None:
        """Count the time that instances have spent; `started` more of them run from now on."""
        self._spent += self._running * (now - self._spent_until)
        self._spent_until = now
        if started and not self._running:
            self.progressed = now
        self._running += started

    def ended(self, now: float, unit: Unit, *, finished: bool, lost: bool = False) -> None:
        self._spent += self._running * (now - self._spent_until)
        self._spent_until = self._last_end = now
        self._running -= 1
        if lost:  # it says nothing about the instances that are left
            self._spent = max(0.0, self._spent - unit.took)
            return
        self._units += 1
        # About the last four units of each instance count, and at least 100 in all.
        newest = 1 / max(100, 4 * len(self._dispatch.up[DEPLOYED]))
        self._spent -= newest * self._spent
        self.queries_ended -= newest * self.queries_ended
        if finished and unit.role == DEPLOYED and self._runs.add(unit.took):
            self.typical_run = self._runs.quantile(0.5) or 0.0

    def refusal(
        self,
        now: float,
        due: float,
        queries: int,
        *,
        waiting: int,
        lag: float,
        degraded: bool = False,
    ) -> Refusal | None:
        """Return the reason for refusing these queries, which are due at one time, or None.

        `waiting` queries wait for instances; everything also waits `lag` seconds for the server's
        own process. If the server is `degraded`, stand-ins answer though no instance does.
        """
        max_queue = self._config.max_queue
        instances = len(self._dispatch.up[DEPLOYED])
        if instances:
            self._up_at = now
        if not waiting:
            self._empty_at = now
            room = self._dispatch.idle_for(DEPLOYED) * self._config.max_batch
            if queries <= min(room, max_queue):
                return None
        if not instances and not degraded and not self.may_recover(now):
            return self.no_instances()
        rate = self.capacity(now)
        if waiting + queries > max_queue:
            detail = f"{waiting} queries wait, and at most {max_queue} may (max_queue)"
            return self._overloaded(detail, waiting / rate if rate else 0.0)
        run = self.typical_run
        if now - self.progressed > max(self.STANDING, self.STANDING_RUNS * run):
            self._empty_at = now  # a queue is standing only while units end
            return None
        if not rate or degraded:
            return None
        left = due - now
        long_run = self._runs.quantile(self.LONG_RUN) or 0.0
        wait = waiting / rate
        # The last of these queries starts after all before it, once a running unit has ended.
        takes = lag + self.SLACK * ((waiting + queries - 1) / rate + run / instances) + long_run
        short = max(
            min(self.SHORT, self.SHORT_RUNS * run), self.LEAST_RUNS * run, self.SHORT_SHARE * left
        )
        standing = now - self._empty_at
        if takes > left:
            beyond = takes - left
            until = f"an answer takes {takes:.3f} s, and is due in {left:.3f} s"
        elif standing > max(self.STANDING, self.STANDING_RUNS * run) and wait > short:
            beyond = wait - short
            until = f"queries have waited for {standing:.1f} s without a break, now {wait:.3f} s"
        else:
            return None
        if queries > 1:
            until = f"{queries} queries at once are many: {until}"
        there = f"{waiting} wait for {instances} instances, which answer {rate:.1f} a second"
        return self._overloaded(f"{until}: {there}", beyond)

    def may_recover(self, now: float) -> bool:
        """Return whether other instances may soon be in the place of those that are gone or stuck:
        for as long as the engine takes to replace them."""
        grace = self._config.grace
        return grace > 0 and (bool(self._dispatch.up[DEPLOYED]) or now < self._up_at + grace)

    def no_instances(self) -> Refusal:
        """Return the refusal of a query that only an instance of the model could answer."""
        detail = "no instance of the model is up, or all are stuck; try again later"
        return Reason.NO_INSTANCES, detail, self._jittered(self.NO_INSTANCES_RETRY)

    def capacity(self, now: float) -> float:
        """Return how many queries a second the instances answer while all are busy; 0: unknown."""
        self.spend(now)
        if self._units < self.KNOWN or not self._spent or not self.queries_ended:
            return 0.0
        if not self._running and now - self._last_end > self.FORGOTTEN:
            return 0.0
        return len(self._dispatch.up[DEPLOYED]) * self.queries_ended / self._spent

    def _overloaded(self, detail: str, seconds: float) -> Refusal:
        detail = f"{detail}; try again later"
        return Reason.OVERLOADED, detail, self._jittered(max(self.LEAST_RETRY, seconds))

    def _jittered(self, seconds: float) -> float:
        return seconds * self._random.uniform(1, 2)
