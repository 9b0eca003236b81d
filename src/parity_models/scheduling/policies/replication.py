"""Replication: every query is sent to several instances at once."""

from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query


class Replication(Policy):
    """`copies` of every query run at once; the first prediction answers, the rest are dropped."""

    def __init__(self, copies: int = 2) -> None:
        if copies < 2:
            raise ValueError(f"replication needs 2 copies or more, got {copies}")
        self._copies = copies

    def arrived(self, port: Port, query: Query) -> None:
        for _ in range(self._copies - 1):
            port.copy(query)
