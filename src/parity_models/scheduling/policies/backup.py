"""Approximate backup: every query also runs on a cheaper network.

The baseline of Kosaian et al., SOSP 2019, section 5.2.6: the extra instances, which would run
parity models, run a smaller network instead and get every query.
"""

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.policy import Policy, Requires, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task


class ApproximateBackup(Policy):
    """Send every query that is not exact to the backup as well; the first answer counts.

    Where an instance runs both models, originals go first.
    """

    name = "approximate-backup"
    requires = Requires.BACKUP
    asks = StandIns(backup=True)

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED})] * instances + [frozenset({BACKUP})] * extra

    def arrived(self, port: Port, query: Query) -> None:
        port.ask(query, preemptible=True)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None:
            port.answer(query, Source.BACKUP, task.doubt)

    def may_answer(self, port: Port, query: Query) -> bool:
        return query.backup is not None
