"""A result that is one table, for experiments that the report need not know."""

from parity_models_lab.reliability.chaos_result import Judged


class TableResult(Judged, frozen=True):
    """`rows` of text, a cell for each of `columns`; `note` says how to read them."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
