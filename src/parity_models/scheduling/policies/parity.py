"""Coded resilience: every k queries are accompanied by r parity queries.

Kosaian et al., SOSP 2019, section 3; groups.py has the life of a coding group. The answer rule says
whether a query that can be reconstructed is answered at once (`first`) or only once it has waited
`answer_after` (`deadline`); one whose instance failed, or whose own deadline is here, never waits.
"""

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.policies.answer_rule import AnswerRule
from parity_models.scheduling.policies.coded import CodedPolicy, Pool
from parity_models.scheduling.policies.erasures import Erasures
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Unit


class Parity(CodedPolicy):
    """The parity policy; see above. Times in seconds.

    `code` says k, r and what is decodable. `max_group_wait` bounds how long a query waits for
    its group to fill; None waits for as long as it takes.
    """

    def __init__(
        self,
        code: Erasures,
        *,
        pool: Pool = Pool.SHARED,
        max_group_wait: float | None = 0.01,
        parity_delay: float = 0.0,
        answer_rule: AnswerRule = AnswerRule.FIRST,
        answer_after: float = 0.0,
    ) -> None:
        groups = CodingGroups(
            code,
            max_wait=max_group_wait,
            parity_delay=parity_delay,
            answer_after=answer_after if answer_rule is AnswerRule.DEADLINE else 0.0,
        )
        super().__init__(code, groups, pool)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        if unit.work == DEPLOYED:
            self.margin.ran(unit, port.max_batch)
            self.run_times.add(port.now - unit.started, finished=finished)
