"""Handwritten digits that come with scikit-learn: 1,797 images of 8x8, nothing to download.

(E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI 1998.)
"""

from pathlib import Path

import numpy as np

from parity_models.tasks.task import Dataset, Split, Task, hold_out

MEAN, DEVIATION = 4.884, 6.017
"""Of the pixels, whose values go from 0 to 16."""

TEST, VALIDATION = 400, 197


class Digits(Task):
    """The 1,797 digits that scikit-learn ships."""

    name = "digits"
    about = "handwritten digits, 8x8"
    metric = "top-1"

    def find(self, folder: Path | None = None) -> str:
        return "scikit-learn"

    def load(self, folder: Path | None = None) -> Dataset:
        """1,200 digits to train on, 197 for validation, 400 for test; `folder` is not needed."""
        from sklearn.datasets import load_digits  # here: evaluation and serving do without it

        images, labels = load_digits(return_X_y=True)
        inputs = ((images - MEAN) / DEVIATION).astype(np.float32).reshape(-1, 1, 8, 8)
        rest, test = hold_out(Split(inputs, labels.astype(np.int64)), TEST)
        train, validation = hold_out(rest, VALIDATION)
        return Dataset(train, validation, test, tuple(map(str, range(10))))
