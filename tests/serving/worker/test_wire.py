"""Messages are read or refused, arrive whole in whatever pieces, and block neither end."""

import asyncio
import socket
from contextlib import suppress
from threading import Thread
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from parity_models.serving.local.local_engine import EngineStream
from parity_models.serving.worker.wire import (
    CONTROL,
    REPORT,
    WORK,
    Cancel,
    Failed,
    Finished,
    Frame,
    Heartbeat,
    Hello,
    InjectFaults,
    MessageError,
    Messages,
    Report,
    Unit,
    WorkerStream,
    encode,
    parts_of,
    read,
)
from parity_models.simulation.emulation import Constant, FaultPlan
from parity_models.tensors.signature import Signature, TensorSpec

ROLES = st.sampled_from(["deployed", "parity-0"]) | st.text()
UNITS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)
SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(["FP32", "INT64", "BOOL"]),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
)
PLAN = FaultPlan(service_time=Constant(3600.0))

MESSAGES: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Unit, UNITS, ROLES, UNITS, st.lists(UNITS, max_size=3).map(tuple)),
    st.builds(Cancel, UNITS),
    st.builds(InjectFaults, st.just(PLAN), st.integers(-5, 5), st.floats()),
    st.builds(Hello, st.dictionaries(ROLES, st.builds(Signature.of, SPECS, SPECS), max_size=2)),
    st.builds(Heartbeat),
    st.builds(Finished, UNITS, st.floats(0, 9)),
    st.builds(Failed, UNITS, st.text(max_size=20)),
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
    return bytes(message)


@given(headers())
@fuzz(200)
def test_a_message_is_read_or_refused(header: bytes) -> None:
    for decoder in (WORK, CONTROL, REPORT):
        with suppress(MessageError):
            read(decoder, header)


@given(MESSAGES)
@fuzz(50)
def test_a_message_is_read_as_it_was_written(message: msgspec.Struct) -> None:
    decoder: Any = REPORT
    if isinstance(message, Unit | InjectFaults):
        decoder = WORK
    elif isinstance(message, Cancel):
        decoder = CONTROL
    assert encode(read(decoder, encode(message))) == encode(message)


# Streams

PIECES = st.lists(st.binary(max_size=40), max_size=5)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), PIECES), min_size=1, max_size=5),
    st.lists(st.integers(1, 60)),
)
def test_messages_are_cut_from_pieces_of_any_size(
    messages: list[tuple[bytes, list[bytes]]], pieces: list[int]
) -> None:
    stream = b"".join(b"".join(parts_of(*message)[0]) for message in messages)
    cutter = Messages()
    got: list[tuple[bytes, bytes]] = []
    for piece in [*pieces, len(stream)]:
        data, stream = stream[:piece], stream[piece:]
        got += [(bytes(header), bytes(tensor)) for header, tensor in cutter.of(data)]
        assert 0 < cutter.wanted <= 2**20
    assert got == [(header, b"".join(tensor)) for header, tensor in messages]


@given(st.binary(max_size=100))
def test_noise_is_no_message_or_is_refused(noise: bytes) -> None:
    with suppress(MessageError):
        Messages().of(noise)


class Ends:
    """Both ends; the worker's can echo what it receives."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[Report, bytes]] = asyncio.Queue()
        self.errors: asyncio.Queue[MessageError] = asyncio.Queue()
        self.ours, self.theirs = socket.socketpair()
        self.engine = EngineStream(self._hear, self.errors.put_nowait)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.engine, sock=self.ours)

    def _hear(self, report: Report, tensor: Frame) -> None:
        self.heard.put_nowait((report, bytes(tensor)))

    def echo(self) -> Thread:
        worker = WorkerStream(self.theirs)

        def loop() -> None:
            with suppress(EOFError):
                while True:
                    header, tensor = worker.receive()
                    worker.send(bytes(header), tensor)

        thread = Thread(target=loop)
        thread.start()
        return thread


async def test_large_messages_and_many_rows_go_through_in_order() -> None:
    ends = Ends()
    await ends.connect()
    messages = [
        (Finished(1, 0.5), [bytes(5_000_000)]),
        (Failed(2, "small"), []),
        (Finished(3, 1.5), [b"row"] * 3000),
        (Finished(4, 2.5), [b"x" * 3_000_000, b"y"]),
    ]
    for report, rows in messages:  # more than the system takes, before anything is read
        ends.engine.send(encode(report), rows)
    thread = ends.echo()
    async with asyncio.timeout(30):
        for report, rows in messages:
            assert await ends.heard.get() == (report, b"".join(rows))
    ends.engine.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive(), "a worker notices that its engine is gone"


async def test_a_worker_that_is_gone_or_talks_nonsense_is_no_error() -> None:
    ends = Ends()
    await ends.connect()
    ends.theirs.send(bytes(16))
    async with asyncio.timeout(30):
        assert "a header of 0 bytes" in str(await ends.errors.get())
    ends.theirs.close()
    ends.engine.send(b"header")
    ends.engine.close()

    ends = Ends()
    await ends.connect()
    ends.engine.send(b"header", [bytes(5_000_000)])
    ends.theirs.close()
    for _ in range(10):
        await asyncio.sleep(0.01)
    ends.engine.send(b"header")
    ends.engine.close()
    assert ends.heard.empty()
    assert ends.errors.empty()
