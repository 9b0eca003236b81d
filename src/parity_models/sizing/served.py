"""What is known of a bundle that is to be served: how long its models take, and how right its
stand-ins are."""

from collections.abc import Mapping
from dataclasses import dataclass

from parity_models.faults import Distribution, LogNormal
from parity_models.models.bundle import Bundle
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.policies import StandIns
from parity_models.serving.gates import choose_gates
from parity_models.serving.plan import model_files, stand_ins_of
from parity_models.simulation.course import DISPATCH, SPREAD
from parity_models.simulation.recording import Recording

ENOUGH = 20
"""Units of a role of which the recorded times are better than a ratio of measured ones."""


@dataclass(frozen=True)
class Served:
    """A bundle as it would be served.

    `seconds` is how long a unit of each role takes undisturbed, the median, and `service` how that
    is drawn; `overhead` comes to every unit. `stand_ins` may answer a share `coverage` of queries,
    of which the share `agreement` says what the model says; None: nobody knows.
    """

    seconds: Mapping[str, float]
    service: Mapping[str, Distribution]
    overhead: float
    stand_ins: StandIns
    coverage: float
    agreement: float | None

    @property
    def unit(self) -> float:
        """Seconds that a unit of the deployed model takes an instance undisturbed."""
        return self.seconds[DEPLOYED] + self.overhead


def served(bundle: Bundle, agreement: float | None, recording: Recording | None) -> Served:
    """A bundle with gates of this level (see `choose_gates`), and with the times of `recording`.

    Roles that it has too few units of take as long, by the deployed model's time, as where the
    bundle was made. Raises UserError for a level that the bundle is not calibrated for.
    """
    measured = _measured(bundle)
    times = dict(measured)
    overhead = DISPATCH
    if recording is not None:
        overhead = 0.0  # it is in the recorded times
        scale = recording.runs[DEPLOYED].median / measured[DEPLOYED]
        times = {role: seconds * scale for role, seconds in measured.items()}
        times |= {
            role: runs.median
            for role, runs in recording.runs.items()
            if role in times and runs.units >= ENOUGH
        }
    stand_ins = stand_ins_of(bundle)
    coverage, level = _gated(bundle, agreement if stand_ins else None)
    service = {role: LogNormal(each, SPREAD) for role, each in times.items()}
    return Served(times, service, overhead, stand_ins, coverage, level)


def _measured(bundle: Bundle) -> dict[str, float]:
    """Seconds by role: as the bundle says or, where it does not, measured now."""
    times = bundle.manifest.inference_times
    if times is not None:
        known = {DEPLOYED: times.deployed, BACKUP: times.backup}
        known |= {parity_role(j): times.parity for j in range(len(bundle.manifest.parity))}
        if all(known.get(role) for role in model_files(bundle)):
            return {role: ms / 1e3 for role, ms in known.items() if ms}
    files = model_files(bundle)
    models = [
        OnnxModel(bundle.path / each.file, signature=each.signature) for each in files.values()
    ]
    return {role: ms / 1e3 for role, ms in zip(files, inference_times(models), strict=True)}


def _gated(bundle: Bundle, agreement: float | None) -> tuple[float, float | None]:
    """The share of queries that stand-ins may answer, and how often they are right then."""
    gates = choose_gates(bundle, list(model_files(bundle)), agreement)
    if gates:
        levels = [each.level for each in gates.values()]
        return min(each.coverage for each in levels), min(each.agreement for each in levels)
    accuracy = bundle.manifest.accuracy
    return 1.0, None if accuracy is None else accuracy.agreement
