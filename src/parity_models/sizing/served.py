"""What is known of a bundle that is to be served: how long its models take, and how right its
stand-ins are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from parity_models.faults import Distribution, LogNormal
from parity_models.models.bundle import Bundle
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED, parity_role
from parity_models.scheduling.policies import StandIns
from parity_models.serving.deployment import model_files, stand_ins_of
from parity_models.simulation.course import DISPATCH, SPREAD, added_by_row
from parity_models.simulation.recording import Recording
from parity_models.trust.gates import choose_gates

ENOUGH = 20
"""Units of a role of which the recorded times are better than a ratio of measured ones."""


@dataclass(frozen=True)
class Served:
    """A bundle as it would be served.

    `seconds` is how long a unit of each role takes undisturbed, the median, and `service` how that
    is drawn; `overhead` comes to every unit. Units have up to `max_batch` queries, and each after
    the first adds a share `further_rows` to their time, by role. `coverage` is the share of queries
    that each stand-in may answer, by source, where it has a gate; of those answers the share
    `agreement`, of the worst of them, says what the model says; None: nobody knows.
    """

    seconds: Mapping[str, float]
    service: Mapping[str, Distribution]
    overhead: float
    stand_ins: StandIns
    coverage: Mapping[str, float]
    agreement: float | None
    max_batch: int = 1
    further_rows: Mapping[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> float:
        """Seconds that a unit of the deployed model takes an instance undisturbed."""
        return self.seconds[DEPLOYED] + self.overhead

    @property
    def query(self) -> float:
        """Seconds that a query takes an instance undisturbed, in a unit that is full."""
        further = self.further_rows.get(DEPLOYED, 0.0) * (self.max_batch - 1)
        return (self.seconds[DEPLOYED] * (1 + further) + self.overhead) / self.max_batch


def served(
    bundle: Bundle,
    agreement: float | None,
    recording: Recording | None,
    max_batch: int = 1,
) -> Served:
    """A bundle with gates of this level (see `choose_gates`), in batches of up to `max_batch`, and
    with the times of `recording`.

    Roles that it has too few units of take as long, by the deployed model's time, as where the
    bundle was made. What further rows of a batch add is measured now, unless there are none. Raises
    UserError for a level that the bundle is not calibrated for.
    """
    measured = _measured(bundle)
    further = {} if max_batch == 1 else _further_rows(bundle, max_batch)
    times = dict(measured)
    overhead = DISPATCH
    if recording is not None:
        overhead = 0.0  # it is in the recorded times
        recorded = {
            role: runs.median / (1 + further.get(role, 0.0) * (recording.rows - 1))
            for role, runs in recording.runs.items()
            if role in times and (role == DEPLOYED or runs.units >= ENOUGH)
        }
        scale = recorded[DEPLOYED] / measured[DEPLOYED]
        times = {role: seconds * scale for role, seconds in measured.items()} | recorded
    stand_ins = stand_ins_of(bundle)
    coverage, level = _gated(bundle, agreement if stand_ins else None)
    service = {role: LogNormal(each, SPREAD) for role, each in times.items()}
    return Served(times, service, overhead, stand_ins, coverage, level, max_batch, further)


def _measured(bundle: Bundle) -> dict[str, float]:
    """Seconds by role: as the bundle says or, where it does not, measured now."""
    times = bundle.manifest.inference_times
    if times is not None:
        known: dict[str, float | None] = {DEPLOYED: times.deployed}
        known |= times.of_backups
        known |= {parity_role(j): times.parity for j in range(len(bundle.manifest.parity))}
        if all(known.get(role) for role in model_files(bundle)):
            return {role: ms / 1e3 for role, ms in known.items() if ms}
    return {role: ms / 1e3 for role, ms in _measured_now(bundle, 1).items()}


def _further_rows(bundle: Bundle, rows: int) -> dict[str, float]:
    """The share of a unit's time that each row after the first adds, in units of so many."""
    one, all_of_them = (_measured_now(bundle, count) for count in (1, rows))
    return {role: added_by_row(ms, all_of_them[role], rows) for role, ms in one.items()}


def _measured_now(bundle: Bundle, rows: int) -> dict[str, float]:
    """Milliseconds of a unit of so many rows, by role."""
    files = model_files(bundle)
    models = [
        OnnxModel(bundle.path / each.file, signature=each.signature) for each in files.values()
    ]
    return dict(zip(files, inference_times(models, rows), strict=True))


def _gated(bundle: Bundle, agreement: float | None) -> tuple[dict[str, float], float | None]:
    """The shares of queries that stand-ins may answer, and how often they are right then."""
    gates = choose_gates(bundle, list(model_files(bundle)), agreement)
    if gates:
        covered = {str(source): each.level.coverage for source, each in gates.items()}
        return covered, min(each.level.agreement for each in gates.values())
    accuracy = bundle.manifest.accuracy
    return {}, None if accuracy is None else accuracy.agreement
