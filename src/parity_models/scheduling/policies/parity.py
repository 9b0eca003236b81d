"""Coded resilience: every k queries are accompanied by r parity queries.

Kosaian et al., SOSP 2019, section 3; groups.py has the life of a coding group. A query that can be
reconstructed is answered once it has waited `stand_in_delay`; one whose instance failed, or whose
own deadline is here, never waits.
"""

from dataclasses import dataclass
from typing import Annotated

from parity_models.options import SECONDS, Option
from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.policies.answer_rule import AnswerOptions
from parity_models.scheduling.policies.coded import CodedPolicy, Pool
from parity_models.scheduling.policies.erasures import Erasures
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Unit


class Parity(CodedPolicy):
    """The parity policy; see above. `code` says k, r and what is decodable."""

    name = "parity"

    @dataclass(frozen=True, kw_only=True)
    class Options(AnswerOptions, CodedPolicy.Options):
        """What can be set."""

        pool: Annotated[
            Pool,
            Option(
                "Where parity models run: on every instance, at lower priority than originals, or "
                "on instances of their own."
            ),
        ] = Pool.SHARED
        max_group_wait: Annotated[
            float | None,
            Option(
                "Time after which a coding group that is not full is filled up with queries "
                "answered before.",
                unit=SECONDS,
                at_least=0,
            ),
        ] = 0.01
        parity_delay: Annotated[
            float,
            Option(
                "How long a full group waits before its parity queries are sent; they are not if "
                "all its predictions are there by then.",
                unit=SECONDS,
                at_least=0,
            ),
        ] = 0.0

    def __init__(self, code: Erasures, options: Options | None = None) -> None:
        options = options or self.Options()
        groups = CodingGroups(
            code,
            max_wait=options.max_group_wait,
            parity_delay=options.parity_delay,
            stand_in_delay=options.stand_in_delay,
        )
        super().__init__(code, groups, options.pool)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        if unit.role == DEPLOYED:
            self.margin.ran(unit, port.max_batch)
            self.run_times.add(port.now - unit.started, finished=finished)
