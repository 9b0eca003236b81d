"""Cascade: every query asks a stand-in first, and the model only if the stand-in's gate refuses.

After Chen et al., FrugalGPT (TMLR 2024), and Kossmann et al., CascadeServe (2024), with a
calibrated gate as the scorer. It saves most of the model's work, and answers most queries from
stand-ins: adaptive spends approximation on the few queries that are late, a cascade on all that the
gate lets pass.
"""

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.hedging import Hedging
from parity_models.scheduling.policies.policy import StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RecentDurations
from parity_models.scheduling.work import Query, Task


class Cascade(Hedging):
    """Ask the backup, and the model if the backup's gate refuses.

    The model also gets queries that the backup cannot answer: they are exact, no instance of the
    backup is up, its gate is closed, or its unit failed. A late query that the model runs is
    copied, as by Hedging. If the backup is late by the same rule, with the times of backups, the
    model is asked as well, within the same budget. Once per `compare_one_in` answers of the
    backup, and once every `compare_every` seconds, the model is asked first and compared with the
    backup (core.BackgroundComparison).
    """

    name = "cascade"
    needs_backup = True
    asks = StandIns(backup=True)

    def __init__(self, options: Hedging.Options | None = None) -> None:
        super().__init__(options)
        self._stand_in_times = RecentDurations()
        self._compare_at = 0.0
        self._not_compared = 0
        """The answers of stand-ins since the model was asked first."""

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED, BACKUP})] * (instances + extra)

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        config = port.config
        due = port.now >= self._compare_at or self._not_compared >= config.compare_one_in
        if due and config.compare_every and not query.exact:
            self._compare_at, self._not_compared = port.now + config.compare_every, 0
            port.compare_next = True
            self._watch(port, query)
        elif not self._ask(port, query):
            self._watch(port, query)

    def _ask(self, port: Port, query: Query) -> bool:
        """Ask the backup. Return whether it can be asked."""
        is_open = port.up(BACKUP) and Source.BACKUP not in port.closed_gates
        if query.exact or not port.redundancy_on or not is_open:
            return False
        port.ask_first(query)
        self._watch(port, query, self._stand_in_times)
        return True

    def _hedge(self, port: Port, query: Query) -> None:
        first = query.first
        if first is None or not query.withheld or query.crashes:
            super()._hedge(port, query)
        elif first.unit is None and port.up(BACKUP):
            self._watch(port, query, self._stand_in_times)
        elif self._budget.spend():
            port.queue_again(query.original)
            self._watch(port, query)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None:
            self._not_compared += 1
            self._stand_in_times.add(port.now - query.arrived)
            port.answer(query, Source.BACKUP)

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._stand_in_times.add(port.now - query.arrived)
        if query.withheld:
            self._watch(port, query)

    def copies_in_flight(self, port: Port, query: Query) -> int:
        return query.first is not None and query.first.unit is not None

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        if query.first is not None and query.first.unit is None:
            port.drop(query.first)
