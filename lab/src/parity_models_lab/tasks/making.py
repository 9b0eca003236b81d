"""Shared by makers of datasets: a folder that is complete or not there, and parallel work."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from parity_models.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with the number of files made, and of all files."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` if nothing fails, and else goes.

    Raises DataError if there is something at `out`, or it cannot be written.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(f"{out} is there already; choose another folder or delete it")
    making = out.with_name(f"{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)  # of a run that was killed
    try:
        making.mkdir(parents=True)
        try:
            yield making
            os.replace(making, out)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot make {out}: {error}") from error


def run_all(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> list[Result]:
    """Return the results of `work` for all `items`, by a thread for each core."""
    results = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for result in pool.map(work, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
