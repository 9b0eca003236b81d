"""Evidence on a stand-in: how often its outputs agreed with the model's, by confidence.

Calibration gives the first of it, and every comparison in service adds to it. It says from which
confidence on outputs may answer (agreement.py), and how probably each differs (doubt.py). It is
kept in files, so that a server goes on where the last one stopped, and several learn from each
other.
"""

import logging
from bisect import bisect_left, bisect_right
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import cached_property
from itertools import pairwise
from math import exp, isfinite
from pathlib import Path
from time import monotonic, time
from typing import IO, Annotated, Final, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.documents import content_of
from parity_models.roles import Source

SLOTS: Final = 32
"""The most servers and clients that keep evidence in one folder."""

WRITE_EVERY: Final = 60.0
"""Seconds between two writes of a file while evidence grows."""

ENOUGH: Final = 5.0
"""Evidence is enough to show a budget if so many outputs were expected to differ (trust/doubt.py).
"""

_FORMAT: Final = 1

_log = logging.getLogger(__name__)

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Expected = Annotated[float, msgspec.Meta(ge=0.0, le=1 << 53)]
Doubt = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class Evidence(msgspec.Struct, forbid_unknown_fields=True):
    """Comparisons of a stand-in's outputs with the model's, counted by confidence.

    Bin i counts outputs with a confidence from thresholds[i] (which ascend) up to the next one. The
    first bin has all below, too. `compared` are all comparisons, `differed` those in which the
    model's output differed, and `expected` is the sum of their doubts at that time.
    """

    thresholds: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    compared: list[Count] = []
    differed: list[Count] = []
    expected: list[Expected] = []

    def __post_init__(self) -> None:
        bins = len(self.thresholds)
        for name in ("compared", "differed", "expected"):
            counts = getattr(self, name) or [0] * bins
            if len(counts) != bins or not all(map(isfinite, counts)):
                raise ValueError("evidence has a number for each of its bins")
            setattr(self, name, counts)
        if any(b <= a for a, b in pairwise(self.thresholds)):
            raise ValueError("thresholds of evidence must ascend")
        if any(d > n for d, n in zip(self.differed, self.compared, strict=True)):
            raise ValueError("not more comparisons can differ than there are")

    def add(self, confidence: float, *, differed: bool, doubt: float = 0.0) -> None:
        """Count a comparison of an output with this confidence and doubt."""
        at = max(0, bisect_right(self.thresholds, confidence) - 1)
        self.compared[at] += 1
        self.differed[at] += differed
        self.expected[at] += doubt

    def __iadd__(self, other: "Evidence") -> Self:
        """Add the comparisons of another server, if its bins are the same."""
        if other.thresholds == self.thresholds:
            for at in range(len(self.thresholds)):
                self.compared[at] += other.compared[at]
                self.differed[at] += other.differed[at]
                self.expected[at] += other.expected[at]
        return self

    def clear(self) -> None:
        """Forget all comparisons."""
        for counts in (self.compared, self.differed, self.expected):
            counts[:] = [0] * len(counts)

    @property
    def middles(self) -> tuple[float, ...]:
        """The middle of each bin; of the last one, its threshold."""
        at = self.thresholds
        return (*((one + other) / 2 for one, other in pairwise(at)), *at[-1:])

    @property
    def total(self) -> int:
        """The number of comparisons."""
        return sum(self.compared)

    @property
    def above(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The comparisons from each threshold on, the highest threshold first: how many there were,
        how many differed, and how many were expected to. (bins,) each."""
        columns = self.compared, self.differed, self.expected
        compared, differed, expected = (np.cumsum(each[::-1], dtype=float) for each in columns)
        return compared, differed, expected

    def since(self, threshold: float) -> tuple[int, int]:
        """Return how many outputs with at least this confidence were compared, and how many
        agreed."""
        first = bisect_left(self.thresholds, threshold)
        compared = sum(self.compared[first:])
        return compared, compared - sum(self.differed[first:])


class DoubtCurve(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """The probability that an output differs from the model's, given its confidence.

    `doubts` of outputs from each of some `confidences`, which ascend, up to the next one. They hold
    at the middle of each bin, are log-linear between, and never rise with confidence. `queries`
    calibrated the curve.

    `evidence` says how well it does on queries that it was not fitted to: for the outputs from each
    confidence up to the next one, how many there were, how many differed, and how many were
    expected to (the sum of their doubts).
    """

    confidences: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    doubts: Annotated[tuple[Doubt, ...], msgspec.Meta(min_length=1)]
    queries: Annotated[int, msgspec.Meta(ge=0)] = 0
    evidence: tuple[tuple[Count, Count, Expected], ...] = ()

    def __post_init__(self) -> None:
        if len(self.confidences) != len(self.doubts):
            raise ValueError("a curve needs a doubt for each confidence")
        if any(b > a for a, b in pairwise(self.doubts)):
            raise ValueError("doubts must not rise with confidence")
        _ = self.comparisons  # raises ValueError for evidence that cannot be

    def of(self, confidence: ArrayLike, factor: float = 1.0) -> NDArray[np.float64]:
        """Return the doubts of outputs with this confidence, `factor` times as large, and 1 at
        most or where the confidence is NaN: both (n,)."""
        at = np.asarray(confidence, np.float64)
        found = factor * np.exp(np.interp(at, *self._points))
        return np.where(np.isnan(at), 1.0, np.minimum(1.0, found))

    def of_one(self, confidence: float) -> float:
        """Return the doubt of an output with this confidence; 1 where it is NaN."""
        return min(1.0, exp(np.interp(confidence, *self._points)))

    @cached_property
    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The confidences at which the curve is known, and the logarithms of its doubts."""
        return np.array(self.comparisons.middles), np.log(self.doubts)

    @property
    def comparisons(self) -> Evidence:
        """The evidence, to which comparisons in service can be added."""
        compared, differed, expected = (
            zip(*self.evidence, strict=True) if self.evidence else ((), (), ())
        )
        return Evidence(self.confidences, [*compared], [*differed], [*expected])

    @property
    def smallest_shown(self) -> float:
        """The smallest share of all answers that differ which the queries can show to hold."""
        return min(1.0, ENOUGH / self.queries) if self.queries else 1.0


class GateState(msgspec.Struct, forbid_unknown_fields=True):
    """What a gate has learned from its own comparisons.

    Attributes:
        evidence: The comparisons since the last change.
        threshold: Outputs with at least this confidence may answer.
        barred: Classes that may not answer, as the model no longer agrees.
        changed: The time at which it last stepped back, in seconds since 1970; 0: never.
        refuted: The threshold above which outputs then agreed too seldom; by default, no output is.
        restarts: How often evidence from before was forgotten, as these agreed again.

    """

    evidence: Evidence
    threshold: float
    barred: list[int] = []
    changed: float = 0.0
    refuted: float = 1e9
    restarts: Count = 0


class Learned(msgspec.Struct, forbid_unknown_fields=True):
    """What a server has learned of a stand-in: its own comparisons, and each gate's state by the
    queries (and the class) that it is for.

    Once answers begin to differ more or less often, `curve` takes the place of the calibrated one,
    whose evidence no longer counts.
    """

    comparisons: Evidence | None = None
    gates: dict[str, GateState] = {}
    curve: DoubtCurve | None = None

    @property
    def changed(self) -> float:
        """The last time at which a gate stepped back."""
        return max((each.changed for each in self.gates.values()), default=0.0)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    bundle: str
    written: float
    stand_ins: dict[Source, Learned]


class EvidenceStore:
    """Keeps what a server learns of a bundle's stand-ins in a file, for the next one.

    A folder has some files for a bundle. A server takes one that no other server uses, and
    goes on from there. At its start it also reads the others, as their comparisons are independent.
    A file that was not written since the last time that any gate stepped back is left out. A file
    that cannot be read or written gives a warning, and the server goes on without it.

    Args:
        folder: The folder, which is made if need be.
        digest: The digest of the bundle's stand-ins. Evidence on others is ignored.
        keep: Take a file; without, the store only reads.
        slots: The most files.

    """

    def __init__(self, folder: Path, digest: str, *, keep: bool = True, slots: int = SLOTS) -> None:
        self._slots = slots
        self._digest, self._stem = digest, f"evidence-{digest[:16]}"
        self._path: Path | None = None
        self._lock: IO[bytes] | None = None
        self.own: dict[Source, Learned] = {}
        """What this server learns of each stand-in."""
        self.others: list[dict[Source, Learned]] = []
        """What others have learned."""
        self._saved = monotonic()
        self._folder = folder
        try:
            if keep:
                folder.mkdir(parents=True, exist_ok=True)
                self._take_slot(folder)
        except OSError as error:
            _log.warning("evidence cannot be kept in %s: %s", folder, error.strerror)
        self.read()

    def learned(self, source: Source) -> Learned:
        """Return what this server learns of a stand-in, to be kept up to date."""
        return self.own.setdefault(source, Learned())

    def learned_by_others(self, source: Source) -> list[Learned]:
        """Return what others have learned of it."""
        return [each[source] for each in self.others if source in each]

    def save(self, *, now: bool = True) -> None:
        """Write the file. Unless it is to be written `now`, only if that was not done lately."""
        if self._path is None or (not now and monotonic() < self._saved + WRITE_EVERY):
            return
        self._saved = monotonic()
        written = max([time(), *(each.changed for each in self.own.values())])
        unfinished = self._path.with_suffix(".part")
        try:
            unfinished.write_bytes(
                msgspec.json.encode(_File(_FORMAT, self._digest, written, self.own))
            )
            unfinished.replace(self._path)
        except OSError as error:
            _log.warning("evidence cannot be kept: %s: %s", self._path, error.strerror)

    def reopened(self) -> "EvidenceStore":
        """Return another store of the same evidence, which takes a file of its own."""
        return EvidenceStore(
            self._folder, self._digest, keep=self._path is not None, slots=self._slots
        )

    def close(self) -> None:
        """Write the file, and let another server take it."""
        self.save()
        self._path = None
        if self._lock is not None:
            self._lock.close()

    def _take_slot(self, folder: Path) -> None:
        for slot in range(self._slots):
            lock = (folder / f"{self._stem}-{slot}.lock").open("wb")
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._lock, self._path = lock, folder / f"{self._stem}-{slot}.json"
            return
        _log.warning("%d others keep evidence in %s; this one keeps none", self._slots, folder)

    def read(self) -> None:
        """Read what was kept."""
        files: dict[Path, _File] = {}
        for path in sorted(self._folder.glob(f"{self._stem}-*.json"))[: self._slots]:
            try:
                files[path] = self._decoded(path)
            except (OSError, ValueError) as error:
                _log.warning("%s is no evidence, and is ignored: %s", path, error)
        now = time()
        changes = [each.changed for one in files.values() for each in one.stand_ins.values()]
        # A change that is still to come is of a clock that was wrong.
        changed = max((each for each in changes if each <= now), default=0.0)
        self.own = files.pop(self._path).stand_ins if self._path in files else {}
        self.others = [each.stand_ins for each in files.values() if each.written >= changed]

    def _decoded(self, path: Path) -> _File:
        found = msgspec.json.decode(content_of(path), type=_File)
        if found.format != _FORMAT:
            raise ValueError(f"its format is {found.format}, and this version reads {_FORMAT}")
        if found.bundle != self._digest:
            raise ValueError("it is about another bundle")
        return found
