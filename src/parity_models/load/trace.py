"""Arrival times from a file: a workload as it was recorded somewhere."""

import os
import warnings

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError

MAX_BYTES = 2**30


def read_trace(path: str) -> NDArray[np.float64]:
    """When each request in the file is due: (n,) seconds after the first.

    The file has one time in seconds per line, in order; lines that begin with # are left out.
    Raises LoadError for anything else.
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise LoadError(f"the trace {path} has more than {MAX_BYTES >> 20} MiB; cut it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of NumPy's, for an empty file
            times = np.loadtxt(path, np.float64, ndmin=2)
    except OSError as error:
        raise LoadError(f"cannot read the trace {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise LoadError(f"the trace {path} must have one number per line: {error}") from error
    if times.size == 0:
        raise LoadError(f"the trace {path} is empty; it must have one time in seconds per line")
    if times.shape[1] != 1:
        raise LoadError(f"the trace {path} must have one number per line, not {times.shape[1]}")
    due: NDArray[np.float64] = times[:, 0] - times[0, 0]
    if not np.isfinite(due).all():
        raise LoadError(f"the trace {path} has times that are not finite numbers")
    back = np.flatnonzero(np.diff(due) < 0)
    if len(back):
        raise LoadError(
            f"the trace {path} is not in order: its time {back[0] + 2} is before the one above; "
            "sort it"
        )
    return due
