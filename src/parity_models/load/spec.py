"""The specification of a load: the server, the queries, and their schedule."""

import os
import warnings
from math import ceil

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.errors import LoadError

MAX_QUERIES = 10_000_000
BOUNDS = {
    "count": (1, MAX_QUERIES),
    "warm_up": (0, MAX_QUERIES),
    "batch": (1, 4096),
    "seed": (0, 2**63),
    "processes": (1, 64),
    "max_in_flight": (1, 512),
    "timeout": (1e-3, 600),
    "rate": (1e-3, 1e6),
    "speed": (1e-6, 1e6),
}
"""The ranges of a load's numbers. `select`, and with it a precise clock, carries about 500
connections."""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A load on one served model.

    It goes to the server at `url`, in tensors as `binary` data or JSON. Queries are drawn from the
    file `data` (see `read_queries`), and answers judged by `metric` where there are labels, in it
    or in the file `labels`. Requests ask for `output` alone, or for all and the first is judged. A
    request holds `batch` queries. Requests are due by a Poisson process of `rate` queries a second,
    or at the times in the file `trace`, divided by `speed`. The first `warm_up` queries are sent
    like the `count` that follow, and left out of the result; both are rounded up to whole requests.
    A request fails `timeout` seconds after it was due; one that is due while its process has
    `max_in_flight` under way is not sent and counts as an error. `processes` take turns in sending.
    Raises LoadError for values out of range.
    """

    url: str = ""
    model: str = "model"
    binary: bool = True
    data: str
    labels: str | None = None
    metric: str = "top-1"
    output: str | None = None
    batch: int = 1
    rate: float | None = None
    trace: str | None = None
    speed: float = 1.0
    count: int
    warm_up: int = 0
    seed: int = 0
    timeout: float = 10.0
    max_in_flight: int = 256
    processes: int = 1

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.trace is None):
            raise LoadError("a load needs a rate or a trace file, and not both")
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            # Written so that NaN is out of range.
            if value is not None and not low <= value <= high:
                raise LoadError(
                    f"the load's {name.replace('_', ' ')} must be from {low:g} to {high:g}, got "
                    f"{value:g}"
                )

    @property
    def requests(self) -> int:
        """The number of requests, including the warm-up."""
        return self.warm_up_requests + ceil(self.count / self.batch)

    @property
    def warm_up_requests(self) -> int:
        return ceil(self.warm_up / self.batch)

    def due(self) -> NDArray[np.float64]:
        """When each request is due: (requests,) seconds from the load's start.

        Raises LoadError if the trace cannot be read or has too few.
        """
        due = _first(self, self.requests)
        if len(due) < self.requests:
            raise LoadError(
                f"{self.trace} has {len(due):,} requests, but {self.requests:,} are to be sent"
            )
        return due


def lasting(spec: LoadSpec, warm_up: float, duration: float | None) -> LoadSpec:
    """`spec`, with the queries due in the first `warm_up` seconds as its warm-up.

    They are followed by its `count`, or where there is a `duration`, by those due in so many
    seconds (inf: all there are in the trace). Raises LoadError if that leaves none, or too many.
    """
    for name, seconds in (("warm-up", warm_up), ("duration", duration or 0)):
        if not seconds >= 0:
            raise LoadError(f"the {name} must be 0 seconds or more, got {seconds:g}")
    length = warm_up + (duration or 0)
    wanted = ceil(spec.count / spec.batch)
    if spec.rate is not None:
        expected = spec.rate * length
        if expected > MAX_QUERIES:
            raise LoadError(
                f"{length:g} s at {spec.rate:g}/s are more than {MAX_QUERIES:,} queries; lower one"
            )
        # Ten standard deviations more than expected, so that the last is due after `length`.
        wanted += ceil(expected / spec.batch + 10 * (expected / spec.batch) ** 0.5)
    due = _first(spec, wanted if spec.rate is not None else MAX_QUERIES)
    first = int(np.searchsorted(due, warm_up))
    if duration is None:
        count = spec.count
    else:
        count = (int(np.searchsorted(due, warm_up + duration)) - first) * spec.batch
    if count == 0:
        raise LoadError("no query is due after the warm-up; let the load last longer")
    return msgspec.structs.replace(spec, warm_up=first * spec.batch, count=count)


def _first(spec: LoadSpec, requests: int) -> NDArray[np.float64]:
    """When the first `requests` are due, or all those of the trace if it has less."""
    if spec.trace is not None:
        return read_trace(spec.trace)[:requests] / spec.speed
    assert spec.rate is not None
    return poisson_arrivals(spec.rate / spec.batch, requests, spec.seed)


MAX_TRACE = 2**30
"""Bytes of a trace's file."""


def read_trace(path: str) -> NDArray[np.float64]:
    """When each request in the file is due: (n,) seconds after the first.

    The file has one time in seconds per line, in order; lines that begin with # are left out.
    Raises LoadError for anything else.
    """
    try:
        if os.path.getsize(path) > MAX_TRACE:
            raise LoadError(f"the trace {path} has more than {MAX_TRACE >> 20} MiB; cut it")
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
