"""A policy as users write it, with an option of its own."""

from dataclasses import dataclass
from functools import partial

from parity_models.options import option
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query


class Again(Policy):
    """Sends every query once more, after a fixed time."""

    name = "again"

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """Options."""

        again_after: float = option(
            1.0, "How long until a query is sent once more.", unit="ms", gt=0, le=9
        )

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or self.Options()

    def arrived(self, port: Port, query: Query) -> None:
        at = port.now + self._options.again_after
        port.set_alarm(query, at, partial(port.copy, query))


POLICY = f"{__name__}:Again"
