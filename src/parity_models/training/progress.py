"""A training run's progress as a bar on stderr."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from parity_models.training.fit import Progress, Report

LAYOUT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"


@contextmanager
def progress_bar(what: str, score: str) -> Iterator[Report]:
    """Show the reports of a training of `what`; `score` names what it is judged by.

    Says the time left, the epoch, and the score now and at best, in per cent. Where stderr is
    not a terminal there is a line now and then.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    bar: tqdm | None = None
    with ExitStack() as stack:

        def report(progress: Progress) -> None:
            nonlocal bar
            if bar is None:  # only now, so that a mistake found before training stands alone
                bar = stack.enter_context(
                    tqdm(total=1.0, desc=what, bar_format=LAYOUT, mininterval=interval)
                )
            said = [f"epoch {progress.epoch}"]
            if progress.seconds_left is not None:
                said.insert(0, f"{tqdm.format_interval(progress.seconds_left)} left")
            if progress.score is not None and progress.best is not None:
                said.append(f"{score} {progress.score:.1%} (best {progress.best:.1%})")
            bar.set_postfix_str(", ".join(said), refresh=False)
            bar.update(progress.spent - bar.n)

        yield report
