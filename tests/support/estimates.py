"""What is known of run times and of interference, after units that a test makes up."""

from parity_models.scheduling import DEPLOYED, parity_role
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Task, Unit


def ran(interference: Interference, seconds: float, times: int, *, beside: bool = False) -> None:
    """So many originals have run for so long; with a redundant task `beside` each, all the time."""
    redundant = Unit(1, "b", [Task(parity_role(0), 0, "kind")], 0.0)
    original = Unit(0, "a", [Task(DEPLOYED, 0, "kind")], 0.0)
    for _ in range(times):
        if beside:
            interference.starts(redundant.tasks[0])
        interference.ended(seconds, original, finished=True)
        if beside:
            interference.ended(0.0, redundant, finished=True)


def run_times(*units: tuple[float, bool]) -> RunTimes:
    """What is known after these units: how long they ran, whether to their end."""
    times = RunTimes(every=max(1, len(units)))
    for seconds, finished in units:
        times.add(seconds, finished=finished)
    return times


def undisturbed() -> Interference:
    """Originals have run alone, for a second each."""
    interference = Interference()
    ran(interference, 1.0, 200)
    return interference
