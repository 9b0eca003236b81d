"""Service times as they were measured somewhere, from a file."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.faults import MAX_MEASURED, Empirical

MAX_BYTES = 1 << 24
"""A longer file is not read."""

LONGEST = 86400


def read_service_times(path: Path) -> Empirical:
    """The times in seconds in an .npy file (n,), or in a text file, one per line.

    Lines that begin with # are left out. Raises UserError for anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES >> 20} MiB: no file of service times")
        times = _read_npy(path) if path.suffix == ".npy" else _read_text(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # NumPy's parser of headers raises anything
        raise UserError(
            f"{path} must be an .npy file or have one number of seconds per line: {error}"
        ) from error
    if times.ndim != 1 or times.dtype.kind not in "fiu":
        raise UserError(
            f"{path} holds {times.dtype} of shape {times.shape}; service times are numbers of "
            "shape (n,)"
        )
    if not 1 <= len(times) <= MAX_MEASURED:
        raise UserError(f"{path} has {len(times):,} service times; give 1 to {MAX_MEASURED:,}")
    if not ((times > 0) & (times <= LONGEST)).all():
        raise UserError(
            f"{path} has service times that are 0, negative, not finite or above {LONGEST}; give "
            "seconds"
        )
    return Empirical(tuple(times.astype(np.float64).tolist()))


def _read_npy(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # nothing pickled
    return array


def _read_text(path: Path) -> NDArray[np.float64]:
    with path.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of NumPy's, for an empty file
        return np.loadtxt(file, np.float64, ndmin=1)
