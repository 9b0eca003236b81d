"""Messages on a stream arrive whole, whatever pieces they come in, and neither end blocks."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread

from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.worker.wire import (
    EngineStream,
    Frame,
    MessageError,
    Messages,
    WorkerStream,
    parts_of,
)

MESSAGES = st.lists(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), min_size=1, max_size=5
)


def plain(frames: Sequence[Frame]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@given(MESSAGES, st.lists(st.integers(1, 60)))
def test_messages_are_cut_from_pieces_of_any_size(
    messages: list[list[bytes]], pieces: list[int]
) -> None:
    stream = b"".join(b"".join(parts_of(message)[0]) for message in messages)
    cutter = Messages()
    got: list[list[bytes]] = []
    for piece in [*pieces, len(stream)]:
        data, stream = stream[:piece], stream[piece:]
        got += map(plain, cutter.of(data))
    assert got == messages


@given(st.binary(max_size=100))
def test_noise_is_no_message_or_is_refused(noise: bytes) -> None:
    try:
        for frames in Messages().of(noise):
            assert frames
    except MessageError:
        pass


class Ends:
    """Both ends; the worker's can echo what it receives."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.errors: asyncio.Queue[MessageError] = asyncio.Queue()
        ours, self.theirs = socket.socketpair()
        self.engine = EngineStream(
            asyncio.get_running_loop(),
            ours,
            lambda frames: self.heard.put_nowait(plain(frames)),
            self.errors.put_nowait,
        )

    def echo(self) -> Thread:
        worker = WorkerStream(self.theirs)

        def loop() -> None:
            with suppress(EOFError):
                while True:
                    worker.send(plain(worker.receive()))

        thread = Thread(target=loop)
        thread.start()
        return thread


async def test_large_messages_and_many_frames_go_through_in_order() -> None:
    ends = Ends()
    messages = [
        [b"header", bytes(5_000_000)],
        [b"small"],
        [b"many", *[b"row"] * 3000],
        [b"large", b"x" * 3_000_000, b"y"],
    ]
    for message in messages:  # more than the system takes, before anybody reads
        ends.engine.send(message)
    thread = ends.echo()
    async with asyncio.timeout(30):
        assert [await ends.heard.get() for _ in messages] == messages
    ends.engine.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive(), "a worker notices that its engine is gone"


async def test_a_worker_that_is_gone_or_talks_nonsense_is_no_error() -> None:
    ends = Ends()
    ends.theirs.send(bytes(8))
    async with asyncio.timeout(30):
        assert "without a header" in str(await ends.errors.get())
    ends.theirs.close()
    ends.engine.send([b"header"])
    ends.engine.close()

    ends = Ends()
    ends.engine.send([b"header", bytes(5_000_000)])
    ends.theirs.close()
    for _ in range(10):
        await asyncio.sleep(0.01)
    ends.engine.send([b"header"])
    ends.engine.close()
    assert ends.heard.empty()
    assert ends.errors.empty()
