"""Recordings of running servers: run times of units, and arrivals of queries.

A recording is made from a server's metrics (`parm plan --recorded URL`) and is the input of
simulations. Metrics do not tell which instance was slow for how long, so the delays of simulated
units are drawn independently.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.documents import content_of, read_json
from parity_models.emulation import (
    MAX_MEASURED,
    Empirical,
    FaultPlan,
    RandomKills,
    Slowdowns,
    load_fault_plan,
)
from parity_models.errors import UserError
from parity_models.scheduling import DEPLOYED

MAX_BYTES = 1 << 24
"""The largest file that is read."""

POINTS = 1001
"""The quantiles of the run times of a role."""

RARELY = 86_400.0
"""The longest mean time between two simulated kills, in seconds."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run times of `units` units of a role, from their dispatch to their outputs.

    `quantiles` are in seconds, at equally spaced shares from 0 to 1.
    """

    units: Annotated[int, msgspec.Meta(ge=1)]
    mean: Seconds
    quantiles: Annotated[tuple[Seconds, ...], msgspec.Meta(min_length=2, max_length=MAX_MEASURED)]

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.quantiles, self.quantiles[1:], strict=False)):
            raise ValueError("quantiles must not decrease")

    @property
    def median(self) -> float:
        """The median run time in seconds."""
        return float(np.quantile(self.quantiles, 0.5))


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's metrics over some `seconds`.

    `instances` of the deployed model were up. `ended` counts the queries that ended in each step of
    `step` seconds; `rows` is the mean number of queries in a unit of the deployed model. `runs` are
    by role. `answers` counts answers by source; `failed` queries had none. `p50_ms`, `p99_ms` and
    `p999_ms` are quantiles of latency. `busy` is the busy time of instances in seconds, `restarts`
    the number that were replaced. Of the stand-ins' answers that were `compared` with the model's,
    `agreed` is the number that agreed.
    """

    format: Literal["parity-models-recording"] = "parity-models-recording"
    format_version: Literal[1] = 1
    created: str
    model: str
    seconds: Annotated[float, msgspec.Meta(gt=0)]
    step: Annotated[float, msgspec.Meta(gt=0)]
    instances: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    ended: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)]
    rows: Annotated[float, msgspec.Meta(gt=0)]
    runs: dict[str, Runs]
    answers: dict[str, Count]
    failed: Count
    p50_ms: float
    p99_ms: float
    p999_ms: float
    busy: Annotated[float, msgspec.Meta(ge=0)]
    restarts: Count
    compared: Count
    agreed: Count

    def __post_init__(self) -> None:
        if DEPLOYED not in self.runs:
            raise ValueError("runs must have the times of the role deployed")
        if not sum(self.ended):
            raise ValueError("ended must have a query")

    @property
    def rate(self) -> float:
        """Queries per second."""
        return sum(self.ended) / self.seconds

    @property
    def contention(self) -> FaultPlan:
        """The contention as a fault plan.

        Each unit is delayed by the excess of a run of the deployed model over the median. Kills are
        as frequent as restarts were.
        """
        runs = self.runs[DEPLOYED]
        median = runs.median
        delays = Empirical(tuple(max(0.0, each - median) for each in runs.quantiles))
        kills = None
        if self.restarts:
            between = self.seconds * self.instances / self.restarts
            kills = RandomKills(min(RARELY, max(0.001, between)))
        always = Slowdowns(mean_between=0.0, mean_length=RARELY, delay=delays)
        return FaultPlan(slowdowns=always, random_kills=kills)

    def arrivals(self, queries: int, seed: int, rate: float | None = None) -> NDArray[np.float64]:
        """Return times (queries,) in seconds of queries that arrive as recorded, repeated.

        With a `rate`, in queries per second, all are scaled to that mean.
        """
        rng = np.random.default_rng(seed)
        factor = 1.0 if rate is None else rate / self.rate
        steps = self.seconds / len(self.ended)
        expected = np.asarray(self.ended, float) * factor
        rounds = int(np.ceil(queries / max(1e-9, expected.sum()))) + 1
        times: list[NDArray[np.float64]] = []
        drawn = 0
        for begin in range(rounds * len(self.ended)):
            whole, part = divmod(float(expected[begin % len(expected)]), 1.0)
            count = int(whole) + int(rng.random() < part)
            times.append((begin + np.sort(rng.random(count))) * steps)
            drawn += count
            if drawn >= queries:
                break
        found = np.concatenate(times)
        if len(found) < queries:  # by chance
            return self.arrivals(queries, seed + 1, rate)
        return np.asarray(found[:queries])


def read_recording(path: Path) -> Recording:
    """Read the recording in a file. Raises UserError for another file."""
    return decode_recording(_read(path), str(path))


def decode_recording(content: bytes, name: str) -> Recording:
    """Decode the `content` of a file of this name. Raises UserError if it is not a recording."""
    try:
        return read_json(content, Recording)
    except ValueError as error:
        raise UserError(
            f"{name} is not a recording: {error}; `parm plan --recorded URL --json FILE` makes one"
        ) from error


def load_contention(source: str) -> FaultPlan:
    """Read the contention in a file: a fault plan, or a recording of a server.

    Raises UserError or FaultPlanError for a file that is neither, or cannot be read.
    """
    if not source.lstrip().startswith("{"):
        content = _read(Path(source))
        if b'"parity-models-recording"' in content[:200]:
            return decode_recording(content, source).contention
    return load_fault_plan(source)


def _read(path: Path) -> bytes:
    try:
        return content_of(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a recording: {error}") from error
