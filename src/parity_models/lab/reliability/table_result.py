"""A result that is one table, for experiments that the report need not know."""

import msgspec

from parity_models.lab.reliability.chaos_result import Claim


class TableResult(msgspec.Struct, frozen=True):
    """`rows` of text, a cell for each of `columns`; `note` says how to read them."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    claims: tuple[Claim, ...]
    date: str
    command: str = ""

    @property
    def met(self) -> bool:
        return all(claim.met for claim in self.claims)
