"""A load: the server, the queries, and when each is sent."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError, UserError, spell
from parity_models.options import Options, option
from parity_models.simulation.arrivals import poisson_arrivals

DURATION = 30.0
"""Seconds that a load lasts by default."""

MAX_QUERIES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class LoadSpec(Options):
    """A load on one model of the server at `url`: the options of `parm load`.

    Queries are drawn from the file `inputs` (see `Queries.read`) and sent in requests of `batch`.
    The first `warm_up` queries are not counted. The next `queries` are, or those that are due in
    the next `duration` seconds. All three are rounded up to whole requests. Labels are classes, and
    judge the model's first output. A request fails `timeout` seconds after it was due. If all
    `connections` are busy when it is due, it is not sent and counts as an error.

    Raises:
        UserError: A value is out of range, `inputs` is missing, or not exactly one of `rate` and
            `trace` is given.
    """

    url: str = ""
    model: str | None = option(None, "The model; by default the server's only one.", metavar="NAME")
    binary: bool = option(False, "Send tensors as binary data, not as JSON.")
    inputs: str = option(
        "",
        "Queries: .npy, or .npz with 'inputs' or an array per input, and optionally 'labels'.",
        metavar="FILE",
    )
    labels: str | None = option(
        None, "The right answers to the inputs, an .npy file.", metavar="FILE"
    )
    batch: int = option(1, "Queries (rows) in a request.", ge=1, le=4096)
    rate: float | None = option(None, "Queries per second, Poisson arrivals.", ge=1e-3, le=1e6)
    trace: str | None = option(
        None,
        "Send a request at each time in this file: seconds, one a line, in order.",
        metavar="FILE",
    )
    queries: int | None = option(None, "Queries to send and count.", ge=1, le=MAX_QUERIES)
    duration: float | None = option(
        None, f"Time to send for; by default {DURATION:g} s, or the whole trace.", unit="s", gt=0
    )
    warm_up: int = option(0, "Queries not counted.", ge=0, le=MAX_QUERIES)
    # Within the limit of descriptors of `select`, whose waits are precise.
    connections: int = option(256, "Requests in flight.", ge=1, le=512)
    timeout: float = option(10.0, "Seconds.", ge=1e-3, le=600)
    seed: int = option(0, "Fixes arrivals and queries.", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inputs:
            raise UserError(f"say which queries to send: give a file with {spell('inputs')}")
        if (self.rate is None) == (self.trace is None):
            one = f"{spell('rate')} or {spell('trace')}"
            raise UserError(f"give {one}, to say when queries are sent, and not both")
        if self.queries is not None and self.duration is not None:
            raise UserError(f"give {spell('queries')} or {spell('duration')}, not both")

    @property
    def warm_up_requests(self) -> int:
        """The number of requests that are not counted."""
        return ceil(self.warm_up / self.batch)

    @cached_property
    def due(self) -> NDArray[np.float64]:
        """The times at which requests are due: (requests,) seconds from the load's start.

        Raises:
            LoadError: The trace cannot be read or is too short, no query would be counted, or more
                than MAX_QUERIES would.

        """
        first, counted = self.warm_up_requests, ceil((self.queries or 0) / self.batch)
        lasts = self.duration or (DURATION if self.rate is not None else inf)
        if self.rate is None:
            due = read_trace(str(self.trace))
        else:
            if not counted and lasts * self.rate > MAX_QUERIES:
                raise LoadError(
                    f"{lasts:g} s at {self.rate:g}/s are more than {MAX_QUERIES:,} queries; "
                    "lower one"
                )
            # Ten standard deviations more than expected, so that the last is due after the end.
            expected = lasts * self.rate / self.batch
            drawn = first + (counted or ceil(expected + 10 * expected**0.5) + 1)
            due = poisson_arrivals(self.rate / self.batch, drawn, self.seed)
        if not counted:
            begin = due[first - 1] if 0 < first <= len(due) else 0.0
            counted = int(np.searchsorted(due, begin + lasts)) - first
            if counted <= 0:
                raise LoadError("no query is due after the warm-up; let the load last longer")
        elif len(due) < first + counted:
            raise LoadError(
                f"{self.trace} has {len(due):,} requests, but {first + counted:,} are to be sent"
            )
        return due[: first + counted]


def read_trace(path: str) -> NDArray[np.float64]:
    """Read when each request in a file is due: (n,) seconds after the first.

    The file has one time in seconds per line, in order; lines that begin with # are left out.
    Raises LoadError if the file cannot be read, or has any other content.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of NumPy's, for an empty file
            times = np.loadtxt(path, np.float64, ndmin=1)
    except OSError as error:
        raise LoadError(f"cannot read the trace {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise LoadError(f"the trace {path} must have one number per line: {error}") from error
    ordered = np.isfinite(times).all() and (np.diff(times) >= 0).all()
    if times.ndim > 1 or not len(times) or not ordered:
        raise LoadError(
            f"the trace {path} must have one time in seconds per line, finite and in order"
        )
    due: NDArray[np.float64] = times - times[0]
    return due
