"""Helpers for tests of training, above all with models from elsewhere."""

from collections.abc import Callable

import numpy as np

from parity_models.codes import CodeSpec
from parity_models_lab.tasks import find_task

STACK = CodeSpec("stack", "separate", 2)
DIGITS = find_task("digits").load()
ROWS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)

Parm = Callable[..., str]
"""`parm` in a new folder: gives stdout, or the error of exit code 2."""
