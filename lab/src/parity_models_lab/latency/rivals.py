"""Rivals where answers may be approximate: cascades, slack rules, accuracy scaled to the load.

Each also copies late queries as hedging does, which its paper does not: they are compared at their
best. Experiments name them as any user's own: parity_models_lab.latency.rivals:SlackFit.
"""

from dataclasses import dataclass
from functools import partial

from parity_models.options import option
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.hedging import Hedging
from parity_models.scheduling.policies.policy import Requires, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RecentDurations
from parity_models.scheduling.states import WITHHELD, QueryState
from parity_models.scheduling.work import Query, Task, Unit


class Cascade(Hedging):
    """Every query asks the backup first, and the model only if the backup's gate refuses.

    After Chen et al., FrugalGPT (TMLR 2024), and Kossmann et al., CascadeServe (2024), with a
    calibrated gate as the scorer.

    The model also gets queries that the backup cannot answer: they are exact, no instance of the
    backup is up, its gate is closed, or its unit failed. A late query that the model runs is
    copied, as by Hedging. If the backup is late by the same rule, with the times of backups, the
    model is asked as well, within the same budget.
    """

    name = "cascade"
    requires = Requires.BACKUP
    asks = StandIns(backup=True)

    def __init__(self, options: Hedging.Options | None = None) -> None:
        super().__init__(options)
        self._stand_in_times = RecentDurations()

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED, BACKUP})] * (instances + extra)

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        if not self._ask(port, query):
            self._watch(port, query)

    def _ask(self, port: Port, query: Query) -> bool:
        """Ask the backup. Return whether it can be asked."""
        is_open = port.up(BACKUP) and Source.BACKUP not in port.closed_gates
        if not port.redundancy_on or not is_open or not port.ask(query, first=True):
            return False
        self._watch(port, query, self._stand_in_times)
        return True

    def _hedge(self, port: Port, query: Query) -> None:
        backup = query.backup
        if backup is None or query.state not in WITHHELD or query.crashes:
            super()._hedge(port, query)
        elif backup.unit is None and port.up(BACKUP):
            self._watch(port, query, self._stand_in_times)
        elif self._budget.spend():
            port.queue_again(query.original)
            self._watch(port, query)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None:
            self._stand_in_times.add(port.now - query.arrived)
            port.answer(query, Source.BACKUP, task.doubt)

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._stand_in_times.add(port.now - query.arrived)
        if query.state in WITHHELD:
            self._watch(port, query)


class LoadAware(Cascade):
    """Asks the model first while it can; a refused answer is the model's to give."""

    def __init__(self, options: Hedging.Options | None = None) -> None:
        super().__init__(options)
        self._runs = {r: RecentDurations(window=200, every=20) for r in (DEPLOYED, BACKUP)}

    def _takes(self, role: str) -> float:
        """Return the median run time in seconds; 0 while it is unknown."""
        return self._runs[role].quantile(0.5) or 0.0

    def refused(self, port: Port, query: Query, source: Source) -> None:
        if query.state in WITHHELD:
            self._watch(port, query)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        super().unit_ended(port, unit, finished=finished)
        if finished:
            self._runs[unit.role].add(unit.took)


class SlackFit(LoadAware):
    """The model where the slack of the oldest queued query allows its time, else the backup.

    Khare et al., SuperServe: fine-grained inference serving for unpredictable workloads, NSDI 2025,
    section 5. There, at dispatch, the slack until the latency objective chooses the largest
    subnetwork that is done in time, else the smallest one. A query's slack only shrinks while it is
    queued, and the oldest is dispatched first, so the same choice is made here when its slack falls
    below the model's time: the query moves on to the queue of the backup.
    """

    name = "slackfit"

    @dataclass(frozen=True, kw_only=True)
    class Options(Hedging.Options):
        """The options."""

        objective: float = option(0.1, "The latency that queries are to keep.", unit="ms", gt=0)

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._objective = (options or self.Options()).objective

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        self._fit(port, query)

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None and task is query.original:
            self._watch(port, query)

    def _fit(self, port: Port, query: Query) -> None:
        if query.state is not QueryState.WAITING or query.exact:
            return
        slack, takes = query.arrived + self._objective - port.now, self._takes(DEPLOYED)
        if takes > slack:
            port.ask(query, first=True)
            self._watch(port, query, self._stand_in_times)
        elif takes:
            port.set_alarm(query, port.now + slack - takes, partial(self._fit, port, query))


class ProteusLike(LoadAware):
    """Each second, the share of queries for the backup with which the capacity matches the rate.

    After Ahmad et al., Proteus: a high-throughput inference-serving system with accuracy scaling,
    ASPLOS 2024: accuracy is given up no further than the measured rate takes. Its integer programme
    places variants on devices for seconds at a time; here every instance holds both networks, and
    what is left to choose is the share. It allows for the answers that the gate refuses.
    """

    name = "proteus-like"

    EVERY = 1.0
    """Seconds between two choices of the share."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Hedging.Options):
        """The options."""

        utilisation: float = option(
            0.8, "The share of their time that instances are to be busy.", unit="share", gt=0
        )

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._utilisation = (options or self.Options()).utilisation
        self._share = self._owed = self._since = 0.0
        self._arrived = self._answered = self._refused = 0

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        self._arrived += 1
        if port.now - self._since >= self.EVERY:
            self._choose(port)
        self._owed += self._share
        if self._owed >= 1 and self._ask(port, query):
            self._owed -= 1
        else:
            self._watch(port, query)

    def _choose(self, port: Port) -> None:
        work = self._arrived / (port.now - self._since) * self._takes(DEPLOYED)
        beyond = work - self._utilisation * port.up(DEPLOYED)
        accepted = (self._answered + 1) / (self._answered + self._refused + 1)
        backup = self._takes(BACKUP) / (self._takes(DEPLOYED) or 1.0)
        saved = work * (accepted - backup)
        self._share = min(1.0, max(0.0, beyond / saved)) if saved > 0 else float(beyond > 0)
        self._arrived, self._since = 0, port.now

    def redundancy_finished(self, port: Port, task: Task) -> None:
        self._answered += 1
        super().redundancy_finished(port, task)

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._refused += 1
        super().refused(port, query, source)
