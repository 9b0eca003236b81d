"""A training run's progress as a bar on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from parity_models.training.fit import Progress
from parity_models.training.search import Searching

LAYOUT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"


class ProgressBar:
    """Called with the reports of a training, shows them; bars appear with the first report, so
    that a mistake found before training stands alone.
    """

    def __init__(self, what: str, score: str) -> None:
        self._what = what
        self._score = score
        self._bar: tqdm | None = None
        self._predictions: tqdm | None = None
        self._interval = 0.2 if sys.stderr.isatty() else 10.0

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            self.close()
            self._bar = tqdm(
                total=1.0, desc=self._what, bar_format=LAYOUT, mininterval=self._interval
            )
        said = [f"epoch {progress.epoch}"]
        if progress.seconds_left is not None:
            said.insert(0, f"{tqdm.format_interval(progress.seconds_left)} left")
        if progress.score is not None and progress.best is not None:
            said.append(f"{self._score} {progress.score:.1%} (best {progress.best:.1%})")
        self._bar.set_postfix_str(", ".join(said), refresh=False)
        self._bar.update(progress.spent - self._bar.n)

    def predicted(self, rows: int) -> None:
        """Show that the deployed model has predicted so many more rows to learn from."""
        if self._predictions is None:
            self._predictions = tqdm(
                desc="the deployed model's predictions",
                unit="row",
                unit_scale=True,
                mininterval=self._interval,
            )
        self._predictions.update(rows)

    def close(self) -> None:
        for bar in (self._predictions, self._bar):
            if bar is not None:
                bar.close()


@contextmanager
def progress_bar(what: str, score: str) -> Iterator[ProgressBar]:
    """Show the reports of a training of `what`; `score` names what it is judged by.

    Says the time left, the epoch, and the score now and at best, in per cent. Where stderr is
    not a terminal there is a line now and then.
    """
    bar = ProgressBar(what, score)
    try:
        yield bar
    finally:
        bar.close()


class SearchBar:
    """Called with the reports of a search, shows them as one bar on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, searching: Searching) -> None:
        if self._bar is None:
            interval = 0.2 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(total=1.0, desc="search", bar_format=LAYOUT, mininterval=interval)
        said = [
            f"{tqdm.format_interval(searching.seconds_left)} left",
            f"round {searching.rung + 1}, {searching.name} ({searching.tried} of {searching.of})",
        ]
        if searching.best is not None:
            said.append(f"best {searching.best:.1%}")
        self._bar.set_postfix_str(", ".join(said), refresh=False)
        self._bar.update(max(0.0, searching.spent - self._bar.n))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
