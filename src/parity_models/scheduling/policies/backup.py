"""Approximate backup: every query also runs on a cheaper network.

The baseline of Kosaian et al., SOSP 2019, section 5.2.6: the extra instances, which would run
parity models, run a smaller network instead and get every query.
"""

from typing import Any

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.policy import Policy, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task


class ApproximateBackup(Policy):
    """Send every query that is not exact to the backup as well; the first answer counts.

    Where an instance runs both models, originals go first.
    """

    name = "approximate-backup"
    needs_backup = True
    asks = StandIns(backup=True)

    def __init__(self, options: Any = None) -> None:
        self._backups: dict[int, Task] = {}

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED})] * instances + [frozenset({BACKUP})] * extra

    def arrived(self, port: Port, query: Query) -> None:
        if query.exact:
            return
        pair: list[Task] = []
        port.keep_apart(query, pair)
        self._backups[query.id] = port.submit(BACKUP, query.id, query.kind, pair, preemptible=True)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None:
            port.answer(query, Source.BACKUP, task.doubt)

    def copies_in_flight(self, port: Port, query: Query) -> int:
        backup = self._backups.get(query.id)
        return backup is not None and backup.unit is not None

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        backup = self._backups.get(query.id)
        if backup is not None and backup.unit is None:
            port.drop(backup)

    def may_answer(self, port: Port, query: Query) -> bool:
        return query.id in self._backups

    def resolved(self, port: Port, query: Query) -> None:
        backup = self._backups.pop(query.id, None)
        if backup is not None:
            port.drop(backup)
