"""Callbacks for the progress of trainings and searches, and callbacks that show bars on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from parity_models.training.fit import OnProgress, Progress
from parity_models.training.teacher import OnPredicted

LAYOUT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"


OnSearch = Callable[[Progress, str], None]
OnMeasured = Callable[[int, int], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called as a training or a search goes on.

    `on_predicted` gets the rows that the deployed model has just predicted, `on_training` and
    `on_search` the progress several times a second, that of a search with the candidate in words,
    `on_measured` the rows that were just measured and how many there are in all; `say` gets
    sentences.
    """

    on_predicted: OnPredicted = _ignore
    on_training: OnProgress = _ignore
    on_search: OnSearch = _ignore
    on_measured: OnMeasured = _ignore
    say: Callable[[str], None] = _ignore


@contextmanager
def progress_bars() -> Iterator[Callbacks]:
    """Yield callbacks that show all as bars on stderr.

    A bar appears with the first report, so that a mistake found before stands alone. Where stderr
    is not a terminal there is a line now and then.
    """
    bars = _Bars()
    try:
        yield Callbacks(bars.predicted, bars.training, bars.search, bars.measured, bars.say)
    finally:
        bars.close()


class _Bars:
    """At most one bar at a time: a report of another kind ends the one before it."""

    def __init__(self) -> None:
        self._name = ""
        self._bar: tqdm[Any] | None = None

    def _show(self, name: str, **options: Any) -> "tqdm[Any]":
        """Return the bar called so."""
        if self._bar is None or self._name != name:
            self.close()
            self._name = name
            interval = 0.2 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(desc=name, mininterval=interval, **options)
        return self._bar

    def _advance(self, name: str, progress: Progress, said: str) -> None:
        bar, left, best = self._show(name, total=1.0, bar_format=LAYOUT), progress.seconds_left, ""
        if progress.score is not None and progress.best is not None:
            best = f", score {progress.score:.1%} (best {progress.best:.1%})"
        first = "" if left is None else f"{tqdm.format_interval(left)} left, "
        bar.set_postfix_str(f"{first}{said}{best}", refresh=False)
        bar.update(max(0.0, progress.spent - bar.n))

    def predicted(self, rows: int) -> None:
        self._show("the deployed model's predictions", unit="row", unit_scale=True).update(rows)

    def training(self, progress: Progress) -> None:
        self._advance("training", progress, f"epoch {progress.epoch}")

    def search(self, progress: Progress, candidate: str) -> None:
        self._advance("search", progress, candidate)

    def measured(self, rows: int, total: int) -> None:
        bar = self._show("measuring", unit="row", unit_scale=True)
        bar.total = total if bar.n + rows <= total else None
        bar.update(rows)

    def say(self, sentence: str) -> None:
        self.close()
        sys.stderr.write(f"{sentence}\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
