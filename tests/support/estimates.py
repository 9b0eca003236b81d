"""Run times that are known after units that a test makes up."""

from parity_models.scheduling.run_times import RunTimes


def run_times(*units: tuple[float, bool]) -> RunTimes:
    """What is known after these units: how long they ran, whether to their end."""
    times = RunTimes(every=max(1, len(units)))
    for seconds, finished in units:
        times.add(seconds, finished=finished)
    return times
