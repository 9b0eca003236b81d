"""Regression on tables: predict one number from a row of others.

Columns and targets are scaled to mean 0 and deviation 1 over all rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.tasks.task import Dataset, FolderTask, Split, Task, hold_out

TEST, VALIDATION = 5, 5
"""One of so many rows is for test, and of the rest one of so many for validation."""


class Diabetes(Task):
    """442 patients, with scikit-learn (Efron et al.: Least Angle Regression, 2004)."""

    name = "diabetes"
    about = "how far a disease gets within a year, from ten measurements"
    metric = "r2"

    def find(self, folder: Path | None = None) -> str:
        return "scikit-learn"

    def load(self, folder: Path | None = None) -> Dataset:
        """284 rows to train on, 70 for validation, 88 for test; `folder` is not needed."""
        from sklearn.datasets import load_diabetes  # here: evaluation and serving do without it

        return _dataset(*load_diabetes(return_X_y=True))


class California(FolderTask):
    """20,640 districts (Pace, Barry: Sparse Spatial Autoregressions, 1997).

    `cal_housing.data` has nine columns with commas between them, the last is the target.
    """

    name = "california"
    about = "the price of houses in a district, from eight of its figures"
    metric = "r2"
    places = ("CaliforniaHousing", "california", "")
    needs = (
        "a folder CaliforniaHousing there with cal_housing.data (from "
        "https://www.dcc.fc.up.pt/~ltorgo/Regression/cal_housing.html)"
    )

    file = "cal_housing.data"
    largest = 64 << 20
    """Bytes of the file; the dataset has 1.3 million."""

    def holds(self, folder: Path) -> bool:
        return (folder / self.file).is_file()

    def read(self, folder: Path) -> Dataset:
        path = folder / self.file
        try:
            if not 0 < path.stat().st_size <= self.largest:
                raise ValueError("it is empty or too large")
            table = np.loadtxt(path, delimiter=",", ndmin=2)
            if table.shape[1] != 9 or len(table) < TEST * VALIDATION:
                raise ValueError(f"it has {table.shape} rows and columns")
            if not np.isfinite(table).all() or not (table[:, 6] > 0).all():
                raise ValueError("it has a number that is none, or a district without households")
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is no table of houses ({error}); fetch it again") from error
        rooms, bedrooms, people, households = table[:, 3:7].T
        table[:, 3:6] = (np.stack([rooms, bedrooms, people]) / households).T
        return _dataset(table[:, :8], table[:, 8])


def _dataset(rows: NDArray[Any], targets: NDArray[Any]) -> Dataset:
    everything = Split(_scaled(rows), _scaled(targets[:, None]))
    rest, test = hold_out(everything, len(rows) // TEST)
    train, validation = hold_out(rest, len(rest) // VALIDATION)
    return Dataset(train, validation, test)


def _scaled(columns: NDArray[Any]) -> NDArray[np.float32]:
    deviations = columns.std(axis=0)
    scaled: NDArray[np.float64] = columns - columns.mean(axis=0)
    return (scaled / np.where(deviations > 0, deviations, 1)).astype(np.float32)
