"""A recording of a running server: how long its units took, and when it was asked.

It is made of the server's metrics (`parm plan --recorded URL`), and is the input of simulations of
a server that exists. Metrics tell how long units took, not which instance was slow for
how long: so the delays that simulated units meet are drawn for each by itself.
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
"""A longer file is not read."""

POINTS = 1001
"""Quantiles by which the times of a role are kept."""

RARELY = 86_400.0
"""Seconds between two kills at most that are simulated."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long `units` units of a role took, from when an instance was given one to its outputs.

    `quantiles` are their times in seconds at equally spaced shares, from 0 to 1.
    """

    units: Annotated[int, msgspec.Meta(ge=1)]
    mean: Seconds
    quantiles: Annotated[tuple[Seconds, ...], msgspec.Meta(min_length=2, max_length=MAX_MEASURED)]

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.quantiles, self.quantiles[1:], strict=False)):
            raise ValueError("quantiles must not decrease")

    @property
    def median(self) -> float:
        """In seconds."""
        return float(np.quantile(self.quantiles, 0.5))


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server did for some `seconds`.

    `instances` of the deployed model were up. `ended` are how many queries ended in each of some
    steps of `step` seconds; `rows` how many queries a unit of the deployed model had, on average.
    `runs` are by role. `answers` counts answers by source; `failed` queries had none. `p50_ms`,
    `p99_ms` and `p999_ms` are of the latencies of all answers. `busy` is how long instances were
    busy, in seconds, and `restarts` how many were replaced. `compared` answers of stand-ins were
    compared with the model's, and `agreed` said the same.
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
        """Queries a second."""
        return sum(self.ended) / self.seconds

    @property
    def contention(self) -> FaultPlan:
        """What held units up: by how much longer than the median units of the deployed model took,
        drawn for each unit; and kills, as often as instances were replaced."""
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
        """Times (queries,) in seconds at which queries arrive as they did there, over and over.

        With a `rate` in queries a second, they arrive so much more or less often on average.
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
    """The recording in a file. Raises UserError for anything else."""
    return decode_recording(_read(path), str(path))


def decode_recording(content: bytes, name: str) -> Recording:
    """The recording in `content`, of a file of this name. Raises UserError for anything else."""
    try:
        return read_json(content, Recording)
    except ValueError as error:
        raise UserError(
            f"{name} is no recording: {error}; `parm plan --recorded URL --json FILE` makes one"
        ) from error


def load_contention(source: str) -> FaultPlan:
    """The contention in a file: a fault plan, or a recording of a server.

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
        raise UserError(f"{path} is no recording: {error}") from error
