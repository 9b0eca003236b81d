"""A progress bar over rows that models run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from parity_models.evaluation.accuracy import Progress


@contextmanager
def rows_bar(what: str) -> Iterator[Progress]:
    """Show how many rows are done, on stderr."""
    with tqdm(desc=what, unit="row", unit_scale=True) as bar:

        def advance(rows: int, total: int) -> None:
            bar.total = total
            bar.update(rows)

        yield advance
