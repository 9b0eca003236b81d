"""What was measured of a real model and its stand-ins."""

from hashlib import sha256

import msgspec

Interval = tuple[float, float]


class StandInResult(msgspec.Struct, frozen=True):
    """A stand-in of a real model, on queries that it has not seen.

    `seconds` is how long it was trained here, None for one that was made elsewhere. `degraded` is
    its own accuracy, where there are labels. `agreement` says how far its answers are the model's
    (`tasks.metrics.agreement`), with its interval; `neighbours`, of embeddings, how often the
    nearest of the other queries is the same one. `coverage` is the share of queries that the gate
    of level 0.99 lets it answer, None where the level was not shown to be kept; of those answers
    `gated` agree. `milliseconds` is its time for one query as long as the test's are, `relative`
    that over the model's.
    """

    network: str
    seconds: float | None
    degraded: float | None
    agreement: float
    interval: Interval | None
    neighbours: float | None
    coverage: float | None
    gated: float | None
    milliseconds: float
    relative: float


class RealResult(msgspec.Struct, frozen=True):
    """A real model: its name and title, what is said of it, what it takes and gives, what judges
    it (`metric`), its accuracy where there are labels, and its stand-ins, fastest first.

    `load` is how many processes wanted to run on the machine meanwhile (its load average).
    """

    name: str
    title: str
    about: str
    signature: str
    metric: str
    output_kind: str
    learned_from: int
    queries: int
    available: float | None
    milliseconds: float
    date: str
    load: float
    stand_ins: tuple[StandInResult, ...]


def digest(*parts: str | bytes) -> str:
    """A name for what these parts determine."""
    found = sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8) + content)
    return found.hexdigest()[:32]
