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

    There is one bar at a time: a report of another kind ends the one before it. It appears with the
    first report, so that a mistake found before stands alone. Where stderr is not a terminal there
    is a line now and then.
    """
    shown: dict[str, tqdm[Any]] = {}

    def close() -> None:
        while shown:
            shown.popitem()[1].close()

    def show(name: str, **options: Any) -> "tqdm[Any]":
        if name not in shown:
            close()
            interval = 0.2 if sys.stderr.isatty() else 10.0
            shown[name] = tqdm(desc=name, mininterval=interval, **options)
        return shown[name]

    def advance(name: str, progress: Progress, said: str) -> None:
        bar, left, best = show(name, total=1.0, bar_format=LAYOUT), progress.seconds_left, ""
        if progress.score is not None and progress.best is not None:
            best = f", score {progress.score:.1%} (best {progress.best:.1%})"
        first = "" if left is None else f"{tqdm.format_interval(left)} left, "
        bar.set_postfix_str(f"{first}{said}{best}", refresh=False)
        bar.update(max(0.0, progress.spent - bar.n))

    def predicted(rows: int) -> None:
        show("the deployed model's predictions", unit="row", unit_scale=True).update(rows)

    def measured(rows: int, total: int) -> None:
        bar = show("measuring", unit="row", unit_scale=True)
        bar.total = total if bar.n + rows <= total else None
        bar.update(rows)

    def say(sentence: str) -> None:
        close()
        sys.stderr.write(f"{sentence}\n")

    try:
        yield Callbacks(
            on_predicted=predicted,
            on_training=lambda each: advance("training", each, f"epoch {each.epoch}"),
            on_search=lambda each, candidate: advance("search", each, candidate),
            on_measured=measured,
            say=say,
        )
    finally:
        close()
