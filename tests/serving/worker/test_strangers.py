"""Who has no key, or does not speak as engines do, is refused by workers, and changes nothing."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zmq

from onnx_models import linear_model
from parity_models.faults import Constant, FaultPlan
from parity_models.models.tensor import TensorSpec
from parity_models.serving.ray.frames import MAX_HEADER, largest_frame
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
    Release,
    Unit,
    encode,
)
from worker_bench import PATIENCE, PLAN, ROW, Bench, endpoints


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []
    linear_model(tmp_path / "m.onnx", (4,), (2,))

    def make(**options: Any) -> Bench:
        made.append(Bench(tmp_path / "m.onnx", **options))
        return made[-1]

    yield make
    for each in made:
        each.context.destroy(0)


def finished(bench: Bench) -> list[int]:
    return [report.unit for report in bench.heard if isinstance(report, Finished)]


@pytest.mark.parametrize("theirs", [None, "another"])
def test_who_has_not_the_key_steals_nothing_and_injects_nothing(
    bench: Callable[..., Bench], theirs: str | None
) -> None:
    here = bench(key=SocketKey.new(), allows_faults=True)
    here.serve()
    here.own()
    key = None if theirs is None else SocketKey.new()
    units, control = (here.push(at, key) for at in endpoints(here.worker))
    units.send(encode(Lease("thief", here.endpoint)))
    units.send(encode(PLAN))
    units.send_multipart([encode(Unit("mine", 99, "deployed")), ROW])
    for message in (Cancel("mine", 1), Release("mine"), Exit("mine")):
        control.send(encode(message))
    assert here.counted("strangers", 2) >= 2
    here.runs()
    assert here.worker.lease == Lease("mine", here.endpoint)
    assert 99 not in finished(here)


def test_what_was_recorded_is_of_no_use_later(bench: Callable[..., Bench]) -> None:
    """A connection that runs a unit goes by someone who keeps its bytes, and sends them again."""
    here = bench(key=SocketKey.new())
    here.serve()
    here.own()
    port = int(endpoints(here.worker)[0].rpartition(":")[2])
    recorded = bytearray()
    door = socket.create_server(("127.0.0.1", 0))

    def relay(source: socket.socket, target: socket.socket, record: bool) -> None:
        while data := source.recv(2**16):
            if record:
                recorded.extend(data)
            target.sendall(data)

    def listen() -> None:
        client, _ = door.accept()
        server = socket.create_connection(("127.0.0.1", port))
        Thread(target=relay, args=(server, client, False), daemon=True).start()
        relay(client, server, True)

    Thread(target=listen, daemon=True).start()
    by_way = here.push(f"tcp://127.0.0.1:{door.getsockname()[1]}", here.key)
    by_way.send_multipart([encode(Unit("mine", 77, "deployed")), ROW])
    here.until(lambda report: isinstance(report, Finished) and report.unit == 77)
    assert len(recorded) > len(ROW)
    assert ROW not in recorded
    with socket.create_connection(("127.0.0.1", port)) as again:
        again.sendall(recorded)
        here.counted("strangers", 1)
    here.runs()
    assert finished(here).count(77) == 1


MALFORMED = [
    [b""],
    [b"\xc1"],
    [b"\xa5abc"],
    [b"\xff" * 100],
    [b"\x91" * 50_000],
    [b"\x83\xa4type\xa5Lease\xa8instance\xa1\xff\xa7reports\xa1\xff"],
    [b'{"unit": 1}'],
    [encode(Heartbeat("mine"))],
    [encode({"type": "Unit", "instance": "mine", "unit": 2**70 % 2**63, "role": None})],
]

UNITS = [
    [encode(Lease("thief", endpoint))]
    for endpoint in ("not an endpoint", "", "inproc://here", "tcp://a b:1", "udp://127.0.0.1:1")
] + [
    [encode(Lease("thief", "tcp://127.0.0.1:1")), b"with a tensor"],
    [encode(Lease("thief", "tcp://[::1:1"))],
    [encode(Unit("mine", 99, "deployed"))],
    [encode(Cancel("mine", 99))],
    [encode(PLAN)],
    [encode(PLAN), b""],
]

CONTROL = [
    [encode(Release("mine")), b""],
    [b"", encode(Exit("mine"))],
    [encode(Unit("mine", 99, "deployed")), ROW],
]


def test_malformed_messages_are_counted_and_nothing_more(bench: Callable[..., Bench]) -> None:
    here = bench(key=None)
    here.serve()
    here.own()
    for socket_, frames in [
        *((here.units, each) for each in MALFORMED + UNITS),
        *((here.control, each) for each in MALFORMED + CONTROL),
    ]:
        socket_.send_multipart(frames)
    here.runs()
    sent = 2 * len(MALFORMED) + len(UNITS) + len(CONTROL)
    assert here.counted("refused", sent) == sent
    here.runs()
    assert here.worker.lease == Lease("mine", here.endpoint)
    assert len(here.heard) - sum(isinstance(each, Heartbeat) for each in here.heard) == 3


@pytest.mark.parametrize(
    ("rows", "role", "reason"),
    [
        ([b""], "deployed", "0 bytes, where 1 rows"),
        ([ROW[:-1]], "deployed", "15 bytes"),
        ([2 * ROW], "deployed", "32 bytes"),
        ([ROW, 2 * ROW], "deployed", "32 bytes"),
        ([ROW, b""], "deployed", "0 bytes"),
        ([ROW], "parity-0", "is no work of this worker's"),
        ([ROW], "", "is no work of this worker's"),
    ],
)
def test_a_unit_that_does_not_fit_fails_and_no_other_one(
    bench: Callable[..., Bench], rows: list[bytes], role: str, reason: str
) -> None:
    here = bench(key=None)
    here.serve()
    here.own()
    here.units.send_multipart([encode(Unit("mine", 60, role)), *rows])
    report = here.until(lambda report: isinstance(report, Failed | Finished))
    assert isinstance(report, Failed)
    assert reason in report.detail
    here.runs()


def test_a_frame_that_is_too_large_is_not_taken(bench: Callable[..., Bench]) -> None:
    here = bench(key=None)
    here.serve()
    here.own()
    flood = here.push(endpoints(here.worker)[0], None)
    cut = flood.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    flood.send_multipart([encode(Unit("mine", 60, "deployed")), bytes(2**17)])
    assert cut.poll(PATIENCE), "who sends it is still connected"
    here.runs()
    assert not [each for each in here.heard if getattr(each, "unit", None) == 60]


@pytest.mark.parametrize("allowed", [False, True])
def test_faults_are_obeyed_only_where_the_server_was_started_for_them(
    bench: Callable[..., Bench], allowed: bool
) -> None:
    here = bench(key=SocketKey.new(), allows_faults=allowed)
    here.serve()
    here.own()
    plan = FaultPlan(service_time=Constant(0.3))
    here.units.send(encode(InjectFaults(plan, 0, time.monotonic() - 1)))
    began = time.monotonic()
    here.runs()
    if allowed:
        assert time.monotonic() - began >= 0.3
    else:
        assert here.counted("refused", 1) == 1


def test_a_worker_of_one_engine_for_good_has_no_other(bench: Callable[..., Bench]) -> None:
    here = bench(key=None)
    here.serve(Lease("mine", here.endpoint))
    here.until(lambda report: isinstance(report, Hello))
    here.connect(None)
    here.units.send(encode(Lease("thief", here.endpoint)))
    here.runs()
    assert here.counted("refused", 1) == 1


def test_a_key_is_not_shown() -> None:
    key = SocketKey.new()
    for text in (repr(key), str(key), f"{[key]}"):
        assert key.public.decode() not in text
        assert key.secret.decode() not in text
    assert key.name == SocketKey(key.public, key.secret).name != SocketKey.new().name


@pytest.mark.parametrize("shapes", [((20_000,), (2,)), ((2,), (20_000,))])
def test_rows_and_outputs_that_fill_the_largest_frame_come_through_encrypted(
    tmp_path: Path, bench: Callable[..., Bench], shapes: tuple[tuple[int], tuple[int]]
) -> None:
    linear_model(tmp_path / "m.onnx", *shapes)
    input, output = (TensorSpec("", "FP32", shape) for shape in shapes)
    assert max(input.zeros(1).nbytes, output.zeros(1).nbytes) > MAX_HEADER
    here = bench(key=SocketKey.new(), max_frame=largest_frame([input]))
    here.reports.set(zmq.MAXMSGSIZE, largest_frame([output], rows=3))
    here.serve()
    here.own()
    rows = [np.ones(input.shape, np.float32).tobytes()] * 3
    here.units.send_multipart([encode(Unit("mine", 1, "deployed")), *rows])
    ended = (Finished, Failed)
    assert isinstance(here.until(lambda it: isinstance(it, ended)), Finished)
