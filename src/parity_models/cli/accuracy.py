"""A progress bar over rows that models run."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar

from parity_models.evaluation.outputs import Progress


@contextmanager
def rows_bar(what: str) -> Iterator[Progress]:
    """Show how many rows are done, on stderr if that is a terminal."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(rows: int, total: int) -> None:
            bar.update(task, advance=rows, total=total)

        yield advance
