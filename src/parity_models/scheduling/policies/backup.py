"""Approximate backup: every query also runs on a cheaper network.

The baseline of Kosaian et al., SOSP 2019, section 5.2.6: the extra instances, which would run
parity models, run a smaller network instead and get every query.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from parity_models.scheduling.actions import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.answer_rule import AnswerRule
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.work import Query, Task

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler


class ApproximateBackup(Policy):
    """Every query that is not exact goes to the backup as well; times in seconds."""

    def __init__(
        self, *, answer_rule: AnswerRule = AnswerRule.FIRST, answer_after: float = 0.0
    ) -> None:
        self._answer_after = answer_after if answer_rule is AnswerRule.DEADLINE else 0.0
        self._backups: dict[int, Task] = {}

    def works(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        return [frozenset({DEPLOYED})] * instances + [frozenset({BACKUP})] * parity_instances

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        if query.exact:
            return
        backup = Task(BACKUP, query.id, query.kind)
        pair = [query.original, backup]
        for task in pair:
            task.spread.append(pair)
        self._backups[query.id] = backup
        scheduler.submit(backup)

    def redundancy_finished(self, scheduler: Scheduler, task: Task) -> None:
        query = scheduler.pending_query(task.subject)
        if query is None:
            return
        answer = partial(scheduler.answer, query, Source.BACKUP)
        due = query.arrived + self._answer_after
        if scheduler.now >= due or query.was_lost:
            answer()
        else:
            query.alarm = scheduler.set_timer(due, answer, (query.id,))

    def exposes(self, scheduler: Scheduler, query: Query) -> int:
        backup = self._backups.get(query.id)
        return backup is not None and backup.unit is not None

    def suspected(self, scheduler: Scheduler, query: Query) -> None:
        backup = self._backups.get(query.id)
        if backup is not None and backup.unit is None:
            scheduler.drop(backup)

    def may_answer(self, scheduler: Scheduler, query: Query) -> bool:
        return query.id in self._backups

    def urgent(self, scheduler: Scheduler, query: Query) -> None:
        if query.alarm is not None:
            scheduler.answer(query, Source.BACKUP)

    def resolved(self, scheduler: Scheduler, query: Query) -> None:
        backup = self._backups.pop(query.id, None)
        if backup is not None:
            scheduler.drop(backup)
