"""A model that is slow now and then: of the servers of late_calls.py, and of Triton, which takes
this file for a model of its Python backend."""

import os
import random
import sys
import time
from typing import Any

SECONDS = 0.010
"""The time of a call that is not slow."""

RESTART = 1.0
"""The first input of a call at which the course of slowness begins again."""

STRAGGLERS, SLOWER = 0.05, 10.0
SPELL, BETWEEN, SPELL_SLOWER = 2.0, 18.0, 6.0


class Slowness:
    """The times of the calls of server `number`: those of `kind` "stragglers" or "spells"."""

    def __init__(self, kind: str, seed: int, number: int) -> None:
        self._kind, self._seed = kind, f"{seed} {number}"
        self.restart()

    def restart(self) -> None:
        """Begin the course of slowness again."""
        self._draw = random.Random(self._seed)
        self._turns = time.monotonic() + self._draw.expovariate(1 / BETWEEN)
        self._slow = False

    def seconds(self) -> float:
        """Return the time of a call that begins now."""
        if self._kind == "stragglers":
            return SECONDS * (SLOWER if self._draw.random() < STRAGGLERS else 1.0)
        while time.monotonic() >= self._turns:
            self._slow = not self._slow
            self._turns += self._draw.expovariate(1 / (SPELL if self._slow else BETWEEN))
        return SECONDS * (SPELL_SLOWER if self._slow else 1.0)


def mean_seconds(kind: str) -> float:
    """Return the mean time of a call."""
    if kind == "stragglers":
        return SECONDS * (1 + STRAGGLERS * (SLOWER - 1))
    return SECONDS * (1 + SPELL / (SPELL + BETWEEN) * (SPELL_SLOWER - 1))


class TritonPythonModel:
    """One slot, behind Triton's queue."""

    def initialize(self, args: dict[str, str]) -> None:
        sys.path.append(os.environ["PYTHONPATH"])  # which Triton's Python does not look at
        import json

        import numpy as np
        import triton_python_backend_utils as triton

        given = json.loads(args["model_config"])["parameters"]["slowness"]["string_value"]
        kind, seed, number = given.split()
        self._slowness = Slowness(kind, int(seed), int(number))
        self._triton, self._output = triton, np.array([[0.1, 0.7, 0.2]], np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        for request in requests:
            if self._triton.get_input_tensor_by_name(request, "input").as_numpy()[0, 0] == RESTART:
                self._slowness.restart()
            time.sleep(self._slowness.seconds())
        answer = self._triton.Tensor.from_dlpack("output", self._output)
        return [self._triton.InferenceResponse([answer]) for _ in requests]
