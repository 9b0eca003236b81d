"""Recordings of real servers, and `parm rehearse`."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.emulation import FaultPlan
from parity_models.errors import UserError
from parity_models.load.recorder import record
from parity_models.models.bundle import Bundle
from parity_models.protection.rehearse import Fault, rehearse
from parity_models.scheduling import BACKUP, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions, Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return linear_bundle(tmp_path_factory.mktemp("bundle"), weights, backup=weights)


async def test_a_server_is_recorded_though_nothing_is_late(bundle: Bundle) -> None:
    options = ServeOptions(policy=PolicyChoice("adaptive"), port=0, compare_every=0.1)
    rows = np.ones((5, FEATURES), np.float32)
    async with Server(bundle, options) as server:
        recording = asyncio.create_task(record(server.url, 2.0))
        asked = 0
        while not recording.done():
            await server.deployment.frontend.infer(rows)
            asked += len(rows)
            await asyncio.sleep(0.005)
        found = await recording
    assert 100 < sum(found.ended) <= asked
    assert found.answers["model"] > 0
    assert found.runs[DEPLOYED].units >= 100
    assert found.runs[BACKUP].units >= 1
    assert found.compared >= 1
    assert found.agreed == found.compared
    assert found.rate > 0
    assert found.busy > 0


def test_nobody_at_the_address_is_said_in_a_sentence(bundle: Bundle, parm_here: Here) -> None:
    of = ("plan", bundle.path, "--p99", "50ms", "--recorded")
    assert_refused(parm_here(*of, "http://127.0.0.1:1"), "no server answers at")
    assert_refused(parm_here(*of, "ftp://nonsense"), "not a server's address")


def test_a_rehearsal_shows_the_tails(bundle: Bundle, tmp_path: Path, parm_here: Here) -> None:
    out = tmp_path / "rehearsed.json"
    of = ("rehearse", str(bundle.path))
    told = parm_here(*of, "--json", str(out), columns=80)
    assert told.returncode == 0, told.stderr
    assert "…" not in told.stdout, "the table is cut"
    for said in ("stopped now and then", "equal-resources", "adaptive", "backup", "stand-in"):
        assert said in told.stdout
    found = json.loads(out.read_text())
    alone, helped = found["without"], found["with_stand_ins"]
    assert alone["sources"].keys() == {"model"}
    assert helped["sources"].keys() <= {"model", "backup"}
    assert alone["answers"] + alone["failed"] == helped["answers"] + helped["failed"] > 0


def test_without_a_stand_in_there_is_nothing_to_rehearse(tmp_path: Path, parm_here: Here) -> None:
    alone = linear_bundle(tmp_path, np.ones((FEATURES, CLASSES), np.float32))
    assert_refused(parm_here("rehearse", str(alone.path)), "has no stand-in to see at work")
    for fault in Fault:
        plan = fault.plan(3.0, 0.02)
        plan.check(1)  # only the first instance has it
        assert plan != FaultPlan()
    with pytest.raises(UserError, match="must be one of kill, stop, slow, got 'burn'"):
        rehearse(alone, fault="burn")
