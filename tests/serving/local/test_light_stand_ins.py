"""A light backup runs in threads of the server, whatever becomes of its workers."""

import asyncio
import os
from pathlib import Path
from signal import SIGSTOP
from typing import Any

import psutil
import pytest

from parity_models.bundle.bundle import Bundle, InferenceTimes, open_bundle, with_measured
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from parity_models.simulation.emulation import FaultPlan
from served import INFER, infer_message, queries, served_here, sources_of, write_linear_bundle

MODEL, STAND_IN = frozenset({DEPLOYED}), frozenset({BACKUP})


def bundle_with(folder: Path, milliseconds: float) -> Bundle:
    """A bundle with a backup that takes this time, where the model takes 1 ms."""
    bundle = open_bundle(write_linear_bundle(folder, coded=False, backed=True))
    measured: Any = {"inference_times": InferenceTimes(1.0, None, milliseconds)}
    return with_measured(bundle, **measured)


@pytest.mark.parametrize(
    ("milliseconds", "options", "roles"),
    [
        (0.1, ServeOptions(), [MODEL, MODEL, STAND_IN, STAND_IN]),
        (0.2, ServeOptions(), [MODEL | STAND_IN] * 2),
        (0.1, ServeOptions(faults=FaultPlan()), [MODEL | STAND_IN] * 2),
        (0.1, ServeOptions(policy=PolicyChoice("hedging")), [MODEL] * 2),
    ],
)
def test_only_a_light_backup_runs_next_to_the_workers(
    tmp_path: Path, milliseconds: float, options: ServeOptions, roles: list[frozenset[str]]
) -> None:
    bundle = bundle_with(tmp_path, milliseconds)
    options = ServeOptions(policy=options.policy, faults=options.faults, instances=2)
    assert Deployment(bundle, options).roles == roles


async def test_it_answers_while_all_workers_are_stopped_and_the_rest_waits(tmp_path: Path) -> None:
    bundle, rows = bundle_with(tmp_path, 0.1), queries(1)
    async with served_here(bundle, differ=1.0, agreement=0, instances=2) as (_, client):
        for worker in psutil.Process().children():
            os.kill(worker.pid, SIGSTOP)
        exact = infer_message(rows, redundancy="exact")
        waits = asyncio.ensure_future(client.post(INFER, json=exact))
        answers = [await client.post(INFER, json=infer_message(rows)) for _ in range(10)]
        assert not waits.done()
        assert [sources_of(each) for each in answers] == [["backup"]] * 10
        assert "x-parm-degraded" in answers[-1].headers
        while (answer := await waits).status_code == 503:  # new workers took longer than `grace`
            waits = asyncio.ensure_future(client.post(INFER, json=exact))
        assert sources_of(answer) == ["model"]
