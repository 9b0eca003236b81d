"""Workers run where and how their placements say."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parity_models.errors import ServingError
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.local.placement import Addresses, Placement
from parity_models.serving.worker.device import Device
from served import predictions, queries, until, write_linear_bundle


class Finish:
    """A listener that keeps the outputs of units."""

    def __init__(self) -> None:
        self.units: asyncio.Queue[tuple[int, np.ndarray]] = asyncio.Queue()

        self.nodes: dict[str, str | None] = {}

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        self.nodes[instance] = node

    def instance_left(self, instance: str, why: str) -> None: ...
    def unit_finished(self, unit: int, outputs: np.ndarray, **stamps: float | None) -> None:
        self.units.put_nowait((unit, outputs))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None: ...

    def headers_of(self, unit: int) -> Mapping[str, str]:
        return {}


async def run_on_both(engine: LocalEngine) -> dict[int, np.ndarray]:
    """A unit on each of two workers at the same time; their outputs by unit."""
    finish = Finish()
    await engine.start([frozenset({"deployed"})] * 2, finish)
    try:
        row = queries(1)[0]
        engine.run("0", 1, "deployed", [row])
        engine.run("1", 2, "deployed", [row])
        return dict([await finish.units.get(), await finish.units.get()])
    finally:
        await engine.stop()


async def test_an_engine_talks_tcp_to_workers_with_a_link(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    placements = [Placement(link=Addresses("127.0.0.1", f"127.0.0.{i}")) for i in (2, 3)]
    engine = LocalEngine(
        {"deployed": PinnedModel.of(bundle / "deployed.onnx")}, placements=placements
    )
    for outputs in (await run_on_both(engine)).values():
        np.testing.assert_allclose(outputs, predictions(queries(1)), rtol=1e-4, atol=1e-6)


async def test_an_engine_that_cannot_listen_says_so(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    nowhere = [Placement(link=Addresses("198.18.0.1", "127.0.0.2"))] * 2
    engine = LocalEngine({"deployed": PinnedModel.of(bundle / "deployed.onnx")}, placements=nowhere)
    with pytest.raises(ServingError, match=r"cannot listen at tcp://198\.18\.0\.1"):
        await engine.start([frozenset({"deployed"})] * 2, Finish())


async def test_the_engine_says_on_which_node_each_worker_is(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    model = PinnedModel.of(bundle / "deployed.onnx")
    here = [Placement(node="rack 7"), Placement()]
    engine, finish = LocalEngine({"deployed": model}, placements=here), Finish()
    await engine.start([frozenset({"deployed"})] * 2, finish)
    await engine.stop()
    assert finish.nodes == {"0": "rack 7", "1": None}


async def test_workers_wait_for_the_device_that_they_share(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    path = tmp_path / "device"
    shared = [Placement(device=str(path))] * 2
    engine = LocalEngine({"deployed": PinnedModel.of(bundle / "deployed.onnx")}, placements=shared)
    with Device(str(path)):
        units = asyncio.create_task(run_on_both(engine))
        await asyncio.to_thread(
            until, lambda: waiting_for(path) == 2, "they do not both wait for the device"
        )
        assert not units.done()
    assert sorted(await units) == [1, 2]


def waiting_for(path: Path) -> int:
    """How many processes wait for the lock on a file."""
    locks = Path("/proc/locks").read_text().splitlines()
    return sum(" -> FLOCK" in lock and f":{path.stat().st_ino} " in lock for lock in locks)


async def test_workers_run_by_the_command_they_are_given(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    core = min(os.sched_getaffinity(0))
    engine = LocalEngine(
        {"deployed": PinnedModel.of(bundle / "deployed.onnx")},
        placements=[Placement(("taskset", "--cpu-list", str(core)))],
    )
    await engine.start([frozenset({"deployed"})], Finish())
    try:
        assert os.sched_getaffinity(engine.pids()["0"]) == {core}
    finally:
        await engine.stop()
