"""The progress of long work: one kind of report for all of it, and bars that show it on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

EVERY = 10.0
"""Seconds between two lines if stderr is not a terminal."""


@dataclass(frozen=True)
class Progress:
    """The progress of some work: `done` of the `total`; None: unknown.

    In training and search, whose total is 1, `score` is that of the last epoch, and `best` of the
    best one so far; None before the first.
    """

    work: str
    done: float
    total: float | None = None
    said: str = ""
    seconds_left: float | None = None
    score: float | None = None
    best: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.done / self.total:.0%}" if self.total else f"{self.done:,.0f}"]
        if self.seconds_left is not None:
            parts.append(f"{timedelta(seconds=round(self.seconds_left))} left")
        if self.said:
            parts.append(self.said)
        if self.score is not None and self.best is not None:
            parts.append(f"score {self.score:.1%} (best {self.best:.1%})")
        return f"{self.work}: {', '.join(parts)}"


OnProgress = Callable[[Progress], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called as work goes on: `on_progress` several times a second, `say` with
    sentences."""

    on_progress: OnProgress = _ignore
    say: Callable[[str], None] = _ignore


@contextmanager
def progress_bars() -> Iterator[Callbacks]:
    """Yield callbacks that show progress as bars on stderr, while the context lasts.

    If stderr is not a terminal, they print a line now and then.
    """
    from rich.console import Console  # here: a server shows no bars
    from rich.progress import BarColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    console, tasks, shown = Console(stderr=True), dict[str, TaskID](), time.monotonic()
    columns = BarColumn(20), TextColumn("{task.description}", markup=False)

    def say(sentence: str) -> None:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(progress: Progress) -> None:
            nonlocal shown
            if progress.work not in tasks:
                tasks[progress.work] = bars.add_task("", total=None)
            task = tasks[progress.work]
            bars.update(task, description=f"{progress}", completed=progress.done)
            bars.update(task, total=progress.total)
            if not console.is_terminal and time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                say(f"{progress}")

        yield Callbacks(show, say)
