"""Whatever frames come to a worker's or an engine's sockets, nothing dies and units are run.

PARM_FUZZ=long tries a hundred times as many.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_conformance import DEPLOYED, Events
from onnx_models import linear_model
from parity_models.faults import Constant, FaultPlan
from parity_models.models.signature import Signature
from parity_models.models.tensor import TensorSpec
from parity_models.serving.metrics import Metrics
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.ray.roster import FrontendReport, Replica
from parity_models.serving.worker.socket_key import SocketKey
from parity_models.serving.worker.wire import (
    Cancel,
    Exit,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    InjectFaults,
    Lease,
    MessageError,
    Release,
    Unit,
    control_of,
    encode,
    report_of,
    work_of,
)
from worker_bench import ROW, Bench, endpoints

pytestmark = pytest.mark.slow

EXAMPLES = 20_000 if os.environ.get("PARM_FUZZ") == "long" else 200

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

INSTANCES = st.sampled_from(["mine", "other", "", "i0.0@f"]) | st.text(max_size=5)
ENDPOINTS = st.sampled_from(["tcp://127.0.0.1:1", "ipc:///tmp/none", "tcp://*:*", ""]) | st.text()
SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(["FP32", "INT64", "BOOL"]),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
)
UNITS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)
COUNTS = st.integers(-5, 5)

MESSAGES: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Lease, INSTANCES, ENDPOINTS),
    st.builds(
        Unit,
        INSTANCES,
        UNITS,
        st.sampled_from(["deployed", "parity-0"]) | st.text(),
        st.lists(UNITS, max_size=3).map(tuple),
    ),
    st.builds(Cancel, INSTANCES, UNITS),
    st.builds(InjectFaults, st.just(FaultPlan(service_time=Constant(3600.0))), COUNTS, st.floats()),
    # Its own instance must do as it is told by who has the key, and would leave these tests.
    st.builds(Release, st.sampled_from(["other", ""])),
    st.builds(Exit, st.sampled_from(["other", ""])),
    st.builds(
        Hello,
        INSTANCES,
        st.dictionaries(
            st.sampled_from(["deployed", "parity-0"]), st.builds(Signature.of, SPECS, SPECS)
        ),
        ENDPOINTS,
        ENDPOINTS,
    ),
    st.builds(Heartbeat, INSTANCES, st.just(False), COUNTS, COUNTS),
    st.builds(Finished, INSTANCES, UNITS, st.floats(0, 9), st.floats(0, 9)),
    st.builds(Failed, INSTANCES, UNITS, st.text(max_size=20)),
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A message, as it is or damaged, or noise."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    message = bytearray(encode(draw(MESSAGES)))
    damage = draw(st.sampled_from(["none", "none", "flip", "cut", "twice", "deep"]))
    if damage == "flip":
        for _ in range(draw(st.integers(1, 3))):
            message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    elif damage == "cut":
        del message[draw(st.integers(0, len(message))) :]
    elif damage == "twice":
        message *= 2
    elif damage == "deep":
        message[:0] = b"\x91" * draw(st.integers(1, 2000))
    # So would one that damage has made such an order, by chance.
    for order in (b"Exit", b"Release", b"leaving") if damage != "none" else ():
        message = message.replace(order, order.lower()[::-1])
    return bytes(message)


FRAMES = st.builds(
    lambda header, more: [header, *more],
    headers(),
    st.lists(st.sampled_from([ROW, ROW[:-1], b"", 3 * ROW]) | st.binary(max_size=40), max_size=4),
)


@given(FRAMES)
@fuzzed
def test_a_message_is_read_or_refused(frames: list[bytes]) -> None:
    for read in (work_of, control_of, report_of):
        with suppress(MessageError):
            read(frames)


# A worker


@pytest.fixture(scope="module", params=["leased", "for good"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("model")
    linear_model(folder / "m.onnx", (4,), (2,))
    bench = Bench(folder / "m.onnx", key=None)
    if request.param == "leased":
        bench.serve()
        bench.own()
    else:
        bench.serve(Lease("mine", bench.endpoint))
        bench.until(lambda report: isinstance(report, Hello))
        bench.connect(None)
    yield bench
    bench.context.destroy(0)


@given(st.lists(st.tuples(st.booleans(), FRAMES), min_size=1, max_size=10))
@fuzzed
def test_a_worker_lives_and_works_on(
    bench: Bench, messages: list[tuple[bool, list[bytes]]]
) -> None:
    for to_control, frames in messages:
        (bench.control if to_control else bench.units).send_multipart(frames)
    # Who has the key may have given the worker away, or let go of it.
    bench.units.send(encode(Lease("mine", bench.endpoint)))
    bench.runs()
    bench.heard.clear()


# An engine


class Hearer:
    """An engine on a loop of its own, its listener, and one worker that is a thread."""

    def __init__(self, folder: Path) -> None:
        self.key = SocketKey.new()
        self.metrics = Metrics()
        linear_model(folder / "m.onnx", (4,), (2,))
        self.bench = Bench(folder / "m.onnx", key=self.key)
        self.bench.serve()
        self.replica = Replica("i0", "b", DEPLOYED, "n", *endpoints(self.bench.worker))
        self.loop = asyncio.new_event_loop()
        Thread(target=self.loop.run_forever, daemon=True).start()
        self.unit = 10_000
        self.do(self._start())
        self.reports = self.bench.push(self.engine.endpoint, self.key)

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def _start(self) -> None:
        async def roster(report: FrontendReport) -> tuple[Replica, ...]:
            return (self.replica,)

        self.events = Events()
        self.engine = RayEngine(
            roster,
            "f",
            "b",
            "127.0.0.1",
            self.key,
            max_frame=2**16,
            heartbeat_timeout=300.0,
            unit_timeout=300.0,
            metrics=self.metrics,
        )
        await self.engine.start([DEPLOYED], self.events)
        self.instance = (await self.events.arrival()).instance

    async def runs(self) -> None:
        """The engine's instance runs a unit, which is all that its listener hears of."""
        self.unit += 1
        self.engine.run(self.instance, self.unit, "deployed", [np.ones(4, np.float32)])
        assert (await self.events.outputs(self.unit)).shape == (1, 2)
        assert self.events.nothing_more()
        assert self.engine.running() == {self.instance: None}


@pytest.fixture(scope="module")
def hearer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearer]:
    hearer = Hearer(tmp_path_factory.mktemp("model"))
    yield hearer
    hearer.do(hearer.engine.stop())
    hearer.bench.context.destroy(0)


@given(st.lists(FRAMES, min_size=1, max_size=10))
@fuzzed
def test_an_engine_lives_and_hears_its_own(hearer: Hearer, messages: list[list[bytes]]) -> None:
    for frames in messages:
        # A worker's own reports that are as they should be count, whoever has its key sends them.
        hearer.reports.send_multipart(frames)
    hearer.do(hearer.runs())
