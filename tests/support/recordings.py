"""Recordings of imagined servers."""

import numpy as np

from parity_models.scheduling import DEPLOYED
from parity_models.simulation.recording import Recording, Runs


def recording(times: tuple[float, ...] = (0.01, 0.01, 0.05), **changed: object) -> Recording:
    """Of a server that was asked 40 times in the first of two seconds, and 160 times then."""
    fields = {
        "created": "2030-01-01T00:00:00+00:00",
        "model": "127.0.0.1:8000",
        "seconds": 2.0,
        "step": 1.0,
        "instances": 4,
        "ended": (40, 160),
        "rows": 1.0,
        "runs": {DEPLOYED: Runs(200, float(np.mean(times)), times)},
        "answers": {"model": 200},
        "failed": 0,
        "p50_ms": 10.0,
        "p99_ms": 50.0,
        "p999_ms": 50.0,
        "busy": 4.0,
        "restarts": 0,
        "compared": 0,
        "agreed": 0,
    }
    return Recording(**{**fields, **changed})  # type: ignore[arg-type]  # as a test likes
