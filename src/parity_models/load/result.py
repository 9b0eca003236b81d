"""The outcome of every query of a load."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.roles import Source

SOURCES = tuple(Source)


@dataclass(frozen=True)
class LoadResult:
    """Arrays (n,) by query in order of arrival; times in seconds.

    `scheduled` counts from the first query, `send_delay` and `latency` from the scheduled time:
    to the actual send (NaN if there was none), and to the answer or the error. `score` is 0..1 by
    the load's metric, NaN without an answer or a label. `outcome` indexes `outcomes`: the sources
    of answers, then the kinds of errors that occurred.
    """

    scheduled: NDArray[np.float64]
    send_delay: NDArray[np.float64]
    latency: NDArray[np.float64]
    score: NDArray[np.float64]
    outcome: NDArray[np.int16]
    outcomes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.scheduled)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """A mask (n,) of the queries that got an answer."""
        answered: NDArray[np.bool_] = self.outcome < len(SOURCES)
        return answered

    def came_from(self, source: Source) -> NDArray[np.bool_]:
        """Return which queries were answered from `source`."""
        here: NDArray[np.bool_] = self.outcome == SOURCES.index(source)
        return here

    def errors(self) -> dict[str, int]:
        """Return the number of queries that ended in each kind of error."""
        kinds, counts = np.unique(self.outcome[~self.answered], return_counts=True)
        return {str(self.outcomes[kind]): int(n) for kind, n in zip(kinds, counts, strict=True)}

    def save(self, path: Path) -> None:
        """Write the arrays to an .npz file."""
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "LoadResult":
        """Read what `save` wrote. Raises LoadError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError) as error:
            raise LoadError(f"{path} is not a load's result: {error}") from error
