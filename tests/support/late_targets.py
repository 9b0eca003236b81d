"""Targets of calls that answer at once, hang or fail, and a Late that has learned their times."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from math import inf
from typing import Any

import httpx
import numpy as np

from parity_models import Late
from parity_models.bundle.backup import GatedBackup
from parity_models.bundle.bundle import Bundle
from parity_models.roles import BACKUP
from parity_models.scheduling.process_load import ProcessLoad
from served import predictions, queries

ROWS = queries(1)
MODEL = predictions(ROWS)
LABELS = [f"label {number}" for number in range(MODEL.shape[1])]
SAID = LABELS[int(MODEL.argmax())]
"""The label of the model's prediction."""
KNOWN = 60
"""Calls after which run times are known, and before which the effect is never tested."""


BundleOf = Callable[..., Bundle]
"""Makes a bundle (fixture `make_bundle`)."""


class RefusedError(Exception):
    """An error of the target."""


class Target:
    """Answers at once, until it hangs or fails."""

    def __init__(self, prediction: Any = MODEL) -> None:
        self.prediction = prediction
        self.hangs = self.fails = False
        self.calls = self.hung = self.cancelled = 0
        self.released = asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        if self.fails:
            raise RefusedError("no")
        if self.hangs:
            self.hung += 1
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        else:
            await asyncio.sleep(0.001)
        return self.prediction


class CalmLate(Late):
    """However busy this machine is, neither the target, nor the event loop, nor the stand-in's
    thread seems overloaded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        client = self._client
        client.congested, client.cpu, client.process_load = inf, 1e9, _Unmeasured()


class _Unmeasured(ProcessLoad):
    def waited(self, seconds: float, typical_run: float) -> None: ...


def labelled(bundle: Bundle) -> GatedBackup:
    """The backup of a bundle, as one whose classes have labels."""
    backup = GatedBackup(bundle, budgeted=True)
    backup.labels = LABELS
    return backup


def in_turn(target: Target, other: Target) -> Callable[[], Awaitable[Any]]:
    """A call to one target, whose copies go to another."""
    targets = chain([target], repeat(other))
    return lambda: next(targets)()


def know_backup(late: Late, doubt: float = 0.1) -> None:
    """Let the rule know the backup: much faster than the model."""
    rule = late._client.kind("").rule
    for _ in range(300):
        rule.ended(BACKUP, 1e-6, finished=True)
        rule.output(1.0, doubt)


async def learned(late: Late, target: Callable[..., Awaitable[Any]], rows: Any = ROWS) -> None:
    for _ in range(KNOWN):
        answer = await late(target, rows)
        np.testing.assert_allclose(
            answer.value, MODEL if answer.source != "backup" else 2 * MODEL, rtol=1e-4, atol=1e-6
        )


class HttpTarget(httpx.MockTransport):
    """A model server, until it fails."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.requests: list[httpx.Request] = []
        self.fails = False
        self.headers: dict[str, str] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.fails:
            raise httpx.ConnectError("no", request=request)
        output = {"name": "output", "datatype": "FP32", "shape": [2, 10]}
        output["data"] = predictions(queries(2)).ravel().tolist()
        stream = httpx.ByteStream(json.dumps({"model_name": "m", "outputs": [output]}).encode())
        return httpx.Response(200, headers=self.headers, stream=stream)
