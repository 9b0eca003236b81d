"""The tensors of queries and coding groups, kept until the scheduler forgets them.

Encoding, decoding and the comparison of reconstructions with predictions read and write them here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Decode,
    Encode,
    ForgetGroup,
    ForgetQueries,
    Run,
    Source,
    parity_work,
)
from parity_models.serving.asked import Asked
from parity_models.serving.comparison import Made

_SOURCES = {DEPLOYED: Source.MODEL, BACKUP: Source.BACKUP}
"""What an output answers as, by the work it came from."""


@dataclass(slots=True, eq=False)
class Group:
    """A coding group's queries, parity queries (r, *parity shape) and what came of the latter."""

    members: tuple[int, ...]
    parities: NDArray[Any]
    outputs: list[Made | None]


class Tensors:
    """Inputs, outputs and parity queries, by the ids of queries and of groups.

    `requests` has the request of each query; `parity_rows` the row of `code` of each parity work.
    """

    def __init__(self, code: Code | None) -> None:
        self._code = code
        self._groups: dict[int, Group] = {}
        self.requests: dict[int, Asked] = {}
        self.parity_rows = {parity_work(j): j for j in range(code.r if code else 0)}

    def row(self, query: int) -> NDArray[Any]:
        """The query's input: (*input shape)."""
        asked = self.requests[query]
        row: NDArray[Any] = asked.rows[query - asked.first]
        return row

    def rows(self, run: Run) -> list[NDArray[Any]]:
        """The inputs of a unit, in the order of its subjects."""
        j = self.parity_rows.get(run.work)
        if j is None:
            return [self.row(query) for query in run.subjects]
        return [self._groups[group].parities[j] for group in run.subjects]

    def keep(self, run: Run, outputs: NDArray[Any]) -> None:
        """Keep a unit's `outputs` (rows, *output shape), as far as they are still remembered."""
        j = self.parity_rows.get(run.work)
        for subject, output in zip(run.subjects, outputs, strict=True):
            if j is None:
                asked = self.requests.get(subject)
                if asked is not None:
                    asked.at_hand[subject, _SOURCES[run.work]] = output
                    if self._code is not None:
                        asked.ran_on[subject] = run.instance
            else:
                group = self._groups.get(subject)
                if group is not None:
                    group.outputs[j] = Made(output, run.instance)

    def prediction(self, query: int) -> Made | None:
        """The deployed model's output for the query, if it is here."""
        asked = self.requests[query]
        output = asked.at_hand.get((query, Source.MODEL))
        return None if output is None else Made(output, asked.ran_on[query])

    def encode(self, action: Encode) -> None:
        """Make the group's parity queries of its members."""
        assert self._code is not None
        with np.errstate(all="ignore"):
            parities = self._code.encode([self.row(query) for query in action.members])
        self._groups[action.group] = Group(action.members, parities, [None] * self._code.r)

    def decode(self, action: Decode) -> dict[int, NDArray[Any]]:
        """Reconstruct, and keep, predictions (*output shape): those of the action's slots."""
        assert self._code is not None
        outputs = self._groups[action.group].outputs
        with np.errstate(all="ignore"):
            decoded = self._code.decode(
                [
                    self.requests[query].at_hand[query, Source.MODEL] if here else None
                    for query, here in zip(action.members, action.available, strict=True)
                ],
                [
                    made.output if made and here else None
                    for made, here in zip(outputs, action.parities, strict=True)
                ],
            )
        reconstructions = {slot: decoded[slot] for slot in action.slots}
        for slot, reconstruction in reconstructions.items():
            query = action.members[slot]
            self.requests[query].at_hand[query, Source.RECONSTRUCTION] = reconstruction
        return reconstructions

    def forget_queries(self, action: ForgetQueries) -> None:
        """Drop what is kept of these queries."""
        for query in action.queries:
            del self.requests[query]

    def forget_group(self, action: ForgetGroup) -> Group:
        """Drop what is kept of the group, and return it."""
        return self._groups.pop(action.group)
