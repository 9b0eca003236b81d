"""The tensors of queries and coding groups, kept until the scheduler forgets them.

Encoding, decoding and the comparison of reconstructions with predictions read and write them here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import (
    BACKUPS,
    DEPLOYED,
    Decode,
    Encode,
    ForgetGroup,
    ForgetQueries,
    Run,
    Source,
    parity_role,
    source_of,
)
from parity_models.serving.asked import Asked
from parity_models.serving.comparison import Made
from parity_models.serving.request_log import RequestLog

_SOURCES = {role: source_of(role) for role in (DEPLOYED, *BACKUPS)}
"""What an output answers as, by the work it came from."""


@dataclass(slots=True, eq=False)
class Group:
    """A coding group's queries, parity queries (r, *parity shape) and what came of the latter."""

    members: tuple[int, ...]
    parities: NDArray[Any]
    outputs: list[Made | None]


class Tensors:
    """Inputs, outputs and parity queries, by the ids of queries and of groups.

    `requests` has the request of each query, or what is left of one that has ended; `parity_rows`
    the row of `code` of each parity work.
    Where the deployed model has several outputs, its predictions are records, of which stand-ins
    imitate the field `imitated`.
    """

    def __init__(self, code: Code | None, imitated: str | None = None) -> None:
        self._code = code
        self._imitated = imitated
        self._groups: dict[int, Group] = {}
        self.requests: dict[int, Asked] = {}
        self.parity_rows = {parity_role(j): j for j in range(code.r if code else 0)}

    def remember(self, asked: Asked) -> None:
        """A request's queries are under way. When it has ended, those of its rows that are still
        remembered, as padding say, are kept each for itself: else one of them would keep all."""
        for query in asked.queries:
            self.requests[query] = asked
        if len(asked.rows) > 1:
            asked.future.add_done_callback(lambda _: self._part(asked))

    def _part(self, asked: Asked) -> None:
        for row, query in enumerate(asked.queries):
            if query in self.requests:
                self.requests[query] = asked.alone(row)

    def tenant(self, query: int) -> str | None:
        """Who asked the query, as far as that is known."""
        asked = self.requests.get(query)
        return None if asked is None else asked.tenant

    def row(self, query: int) -> NDArray[Any]:
        """The query's input: (*input shape)."""
        asked = self.requests[query]
        row: NDArray[Any] = asked.rows[query - asked.first, ...]
        return row

    def rows(self, run: Run) -> list[NDArray[Any]]:
        """The inputs of a unit, in the order of its subjects."""
        j = self.parity_rows.get(run.role)
        if j is None:
            return [self.row(query) for query in run.subjects]
        return [self._groups[group].parities[j] for group in run.subjects]

    def requests_of(self, run: Run) -> list[RequestLog]:
        """The requests that a unit is for, as far as they are remembered and came by a protocol."""
        queries: Iterable[int] = run.subjects
        if run.role in self.parity_rows:
            groups = [self._groups[group] for group in run.subjects if group in self._groups]
            queries = [query for group in groups for query in group.members]
        asked = [self.requests[query] for query in queries if query in self.requests]
        return [each.request for each in asked if each.request is not None]

    def keep(self, run: Run, outputs: NDArray[Any]) -> None:
        """Keep a unit's `outputs` (rows, *output shape), as far as they are still remembered."""
        j = self.parity_rows.get(run.role)
        for subject, output in zip(run.subjects, outputs, strict=True):
            if j is None:
                asked = self.requests.get(subject)
                if asked is not None:
                    source = _SOURCES[run.role]
                    asked.at_hand[subject, source] = output
                    asked.ran_on[subject, source] = run.instance
            else:
                group = self._groups.get(subject)
                if group is not None:
                    group.outputs[j] = Made(output, run.instance)

    def prediction(self, query: int) -> Made | None:
        """The deployed model's output for the query, if it is here: the imitated one."""
        return self._made(query, Source.MODEL)

    def predictions(self, run: Run) -> dict[int, Made]:
        """The deployed model's outputs for a unit's queries, those that are here."""
        made = {query: self._made(query, Source.MODEL) for query in run.subjects}
        return {query: each for query, each in made.items() if each is not None}

    def backed(self, run: Run) -> Iterator[tuple[Source, Made, Made]]:
        """The outputs of a backup, with its source, and of the deployed model for queries of a unit
        of either, where both are here."""
        which = BACKUPS if run.role == DEPLOYED else (run.role,)
        for query in run.subjects:
            for source in map(source_of, which):
                backup = self._made(query, source)
                prediction = None if backup is None else self._made(query, Source.MODEL)
                if backup is not None and prediction is not None:
                    yield source, backup, prediction

    def _made(self, query: int, source: Source) -> Made | None:
        asked = self.requests.get(query)
        output = None if asked is None else asked.at_hand.get((query, source))
        if asked is None or output is None:
            return None
        if source is Source.MODEL:
            output = self._imitated_of(output)
        return Made(output, asked.ran_on[query, source], asked.tenant)

    def _imitated_of(self, prediction: NDArray[Any]) -> NDArray[Any]:
        """Of the deployed model's outputs for a query, the one that stand-ins give."""
        return prediction if self._imitated is None else prediction[self._imitated]

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
                    self._imitated_of(self.requests[query].at_hand[query, Source.MODEL])
                    if here
                    else None
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
