"""Replication: every query is sent to several instances at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.work import Query

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler


class Replication(Policy):
    """`copies` of every query run at once; the first prediction answers, the rest are dropped."""

    def __init__(self, copies: int = 2) -> None:
        if copies < 2:
            raise ValueError(f"replication needs 2 copies or more, got {copies}")
        self._copies = copies

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        for _ in range(self._copies - 1):
            scheduler.copy(query)
