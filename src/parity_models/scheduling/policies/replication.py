"""Replication: every query is sent to several instances at once."""

from dataclasses import dataclass

from parity_models.options import option
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query


class Replication(Policy):
    """Run `copies` of every query at once; the first prediction answers, the rest are dropped."""

    name = "replication"

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The policy's options."""

        copies: int = option(2, "The number of times each query is sent.", ge=2)

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or self.Options()

    def arrived(self, port: Port, query: Query) -> None:
        for _ in range(self._options.copies - 1):
            port.copy(query)
