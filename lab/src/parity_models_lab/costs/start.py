"""How long `parm serve` takes from the start of its process until it is ready."""

import signal
import subprocess
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import msgspec

from parity_models.errors import ServingError
from parity_models.models.bundle import Bundle
from parity_models_lab.costs.asked import generated_bundle
from parity_models_lab.parm import parm

AT_MOST = 2.5
"""Seconds that a start with a small bundle may take."""


class StartTimes(msgspec.Struct, frozen=True):
    """Seconds of each start, from the process's to the line that says that it serves."""

    bundle: str
    instances: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)


def measure_start(bundle: Bundle | None = None, *, instances: int, starts: int) -> StartTimes:
    """Start a server of `bundle`, or of a generated MLP and a parity model, so often, one after the
    other; the files are in the system's cache from the second start on.

    Raises ServingError if one does not start.
    """
    with generated_bundle(bundle) as served:
        command = parm("serve", str(served.path), f"--instances={instances}", "--port=0")
        seconds = [_start(command) for _ in range(starts)]
        return StartTimes(served.manifest.name, instances, seconds)


def _start(command: Sequence[str]) -> float:
    began = perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        took = perf_counter() - began
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate()
    if not ready.startswith("serving"):
        raise ServingError(f"parm serve did not start: {errors.strip()}")
    return took
