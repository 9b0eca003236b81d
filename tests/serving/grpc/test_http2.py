"""HTTP/2 as gRPC's transport over ngh2: what frames mean, and floods of them."""

import asyncio
import gzip
from contextlib import AsyncExitStack, suppress

import ngh2
import pytest
from google.rpc import code_pb2

from grpc_served import READY, Served, method, request, serving
from http2_client import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    block,
    connected,
    fields_of,
    frame,
    prefixed,
)
from http_served import eventually
from parity_models.serving.grpc.codec import MAX_METADATA_BYTES
from parity_models.serving.grpc.protos import ServerReflectionRequest, ServerReflectionResponse
from parity_models.serving.grpc.service import RESERVE

HEALTH = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


async def answers(served: Served) -> None:
    """Other clients are answered: the server is well."""
    async with served.channel() as channel:
        assert await method(channel, HEALTH)(b"", timeout=60)
        assert await method(channel)(request(), timeout=60)


MESSAGE, BR = prefixed(request()), (b"grpc-encoding", b"br")
GZIP = (b"grpc-encoding", b"gzip")
ZIPPED = gzip.compress(request(), mtime=0)  # alike in every worker of xdist, as ids are


@pytest.mark.parametrize(
    ("data", "more", "code", "text"),
    [
        (MESSAGE, [(b"grpc-timeout", b"soon")], "INVALID_ARGUMENT", "grpc-timeout"),
        (MESSAGE, [(b"grpc-timeout", b"10S"), BR], "OK", ""),
        (prefixed(request() + b"\0"), [], "INVALID_ARGUMENT", "cannot be read"),
        (b"", [], "INVALID_ARGUMENT", "one whole message"),
        (b"\0\0\0", [], "INVALID_ARGUMENT", "one whole message"),
        (MESSAGE + b"\0", [], "INVALID_ARGUMENT", "one whole message"),
        (MESSAGE[:-1], [], "INVALID_ARGUMENT", "one whole message"),
        (prefixed(request(), 1), [GZIP], "INVALID_ARGUMENT", "cannot be decompressed"),
        (prefixed(request(), 1), [BR], "UNIMPLEMENTED", "gzip, deflate or not"),
        (prefixed(ZIPPED[:-12], 1), [GZIP], "RESOURCE_EXHAUSTED", "a part of"),
        (prefixed(ZIPPED, 1), [GZIP], "OK", ""),
    ],
)
async def test_a_call_has_one_whole_message(
    data: bytes, more: list[tuple[bytes, bytes]], code: str, text: str
) -> None:
    async with serving() as (served, _), connected(served.address) as client:
        served.frontend.may.set()
        stream = client.ask(None, *more)
        client.h2.send_data(stream, data, end_stream=True)
        client.flush()
        found, said = await client.status(stream)
        assert code_pb2.Code.Name(found) == code
        assert text in said


async def test_another_protocol_gets_415_and_another_method_unimplemented() -> None:
    async with serving() as (served, _), connected(served.address) as client:
        fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
        stream = client.h2.send_request([*fields, (b":authority", b"here")], end_stream=True)
        other = client.ask(b"", path="/inference.GRPCInferenceService/Nothing")
        assert (await client.status(other))[0] == code_pb2.UNIMPLEMENTED
        assert client.statuses[stream] == {b":status": b"415"}
        assert await client.status(client.ask(b"", path=READY)) == (code_pb2.OK, "")


async def test_reflection_answers_each_message_of_a_stream() -> None:
    ask, answer = ServerReflectionRequest, ServerReflectionResponse
    async with serving() as (served, _), connected(served.address) as client:
        stream = client.ask(None, path=REFLECT)
        asked = [ask(list_services="*"), ask(file_by_filename="nothing"), ask()]
        for byte in b"".join(prefixed(each.SerializeToString()) for each in asked):
            client.h2.send_data(stream, bytes([byte]))
            client.flush()
        client.h2.end_stream(stream)
        client.flush()
        assert await client.status(stream) == (code_pb2.OK, "")
        data, said = client.data[stream], []
        while data:
            size = 5 + int.from_bytes(data[1:5], "big")
            said.append(answer.FromString(data[5:size]))
            data = data[size:]
        names = [each.name for each in said[0].list_services_response.service]
        assert "inference.GRPCInferenceService" in names
        assert [each.error_response.error_code for each in said[1:]] == [code_pb2.NOT_FOUND] * 2


async def test_a_large_message_of_reflection_is_answered_once_it_is_whole() -> None:
    """Else the answer would repeat memory that nothing was written to."""
    async with serving() as (served, _), connected(served.address) as client:
        stream = client.ask(None, path=REFLECT)
        asked = ServerReflectionRequest(file_by_filename="x" * (MAX_METADATA_BYTES - 4))
        message = prefixed(asked.SerializeToString())
        assert len(message) == 5 + MAX_METADATA_BYTES
        for piece in (message[:1000], message[1000:2000], message[2000:]):
            assert not client.data[stream]
            client.h2.send_data(stream, piece)
            assert await client.status(client.ask(b"", path=HEALTH)) == (code_pb2.OK, "")
        client.h2.end_stream(stream)
        client.flush()
        assert await client.status(stream) == (code_pb2.OK, "")
        said = ServerReflectionResponse.FromString(client.data[stream][5:])
        assert said.original_request == asked


# Connections


@pytest.mark.parametrize("why", ["the server stops", "the connection is old"])
async def test_a_connection_is_asked_to_end_and_its_calls_are_answered(why: str) -> None:
    limits = {"max_age": 1e-3} if why == "the connection is old" else {}
    async with serving(**limits) as (served, _), connected(served.address) as client:
        stream = client.ask(request())
        await eventually(lambda: served.frontend.asked == 1)
        stops = served.server.stop() if why == "the server stops" else asyncio.sleep(0)
        stopped = asyncio.ensure_future(stops)
        await eventually(lambda: any(isinstance(e, ngh2.GoAwayReceived) for e in client.events))
        served.frontend.may.set()
        assert await client.status(stream) == (code_pb2.OK, "")
        await stopped
        await eventually(lambda: client.closed)


@pytest.mark.parametrize("calls", [0, 1])
async def test_a_silent_client_loses_its_connection(calls: int) -> None:
    limits = {"head_timeout": 0.3, "idle_timeout": 0.3}
    async with serving(**limits) as (served, _):
        async with connected(served.address, reads=False) as client:
            for _ in range(calls):
                client.ask(request())
            await eventually(lambda: served.frontend.asked == calls)
            await eventually(lambda: not served.server.connections)
        assert served.frontend.cancelled == calls


async def test_a_message_that_does_not_arrive_is_given_up() -> None:
    async with serving(body_timeout=0.3) as (served, _), connected(served.address) as client:
        stream = client.ask(None)
        code, text = await client.status(stream)
        assert (code, text) == (
            code_pb2.DEADLINE_EXCEEDED,
            "the message did not arrive within the body_timeout of 0.3 s",
        )
        assert served.requests(408) == served.refused("body_timeout") == 1
        await eventually(lambda: not served.server.calls)


async def test_a_deadline_ends_a_call_whose_client_does_not() -> None:
    async with serving() as (served, _), connected(served.address) as client:
        stream = client.ask(request(), (b"grpc-timeout", b"100m"))
        assert (await client.status(stream))[0] == code_pb2.DEADLINE_EXCEEDED
        await eventually(lambda: served.frontend.cancelled == 1)


# Floods


async def test_a_message_in_frames_of_a_byte_is_counted_as_it_arrives() -> None:
    async with serving() as (served, _), connected(served.address) as client:
        served.frontend.may.set()
        message = prefixed(request(2000))
        stream = client.ask(None)
        frames = [frame(DATA, 0, stream, message[i : i + 1]) for i in range(len(message))]
        await client.write(*frames[:-1])
        await eventually(lambda: served.budget.held == len(message) - 1)
        await answers(served)
        await client.write(frames[-1], frame(DATA, END_STREAM, stream))
        assert await client.status(stream) == (code_pb2.OK, "")


async def test_messages_that_arrive_are_bounded_together() -> None:
    async with serving(max_body=2**18, max_in_flight=2**18) as (served, _):
        async with connected(served.address) as client:
            streams = [client.ask(None) for _ in range(5)]
            for stream in streams:
                client.h2.send_data(stream, prefixed(bytes(2**17))[:60_000])
                client.flush()
            codes = [await client.status(stream) for stream in streams[4:]]
            assert codes[0][0] == code_pb2.RESOURCE_EXHAUSTED
            assert served.budget.held <= 2**18
        await eventually(lambda: served.budget.held == 0)


async def test_a_header_block_of_16_mib_ends_the_connection_and_no_other() -> None:
    async with serving() as (served, infer):
        call = asyncio.ensure_future(infer(request()))
        await eventually(lambda: served.frontend.asked == 1)
        many = block((b"name-%d" % each, bytes([118]) * 100) for each in range(100))
        async with connected(served.address) as client:
            stream = client.ask(None)
            await client.write(frame(HEADERS, 0, stream + 2, block(fields_of()) + many))
            with suppress(ConnectionError):
                for _ in range(2**24 // len(many)):
                    await client.write(frame(CONTINUATION, 0, stream + 2, many))
            await eventually(lambda: client.closed)
        served.frontend.may.set()
        await call
        await answers(served)


async def test_a_client_that_cancels_thousands_of_calls_loses_its_connection_alone() -> None:
    async with serving() as (served, infer):
        call = asyncio.ensure_future(infer(request()))
        await eventually(lambda: served.frontend.asked == 1)
        head, data = block(fields_of()), prefixed(request())
        async with connected(served.address) as client:
            with suppress(ConnectionError):
                for stream in range(1, 40_000, 2):
                    await client.write(
                        frame(HEADERS, END_HEADERS, stream, head),
                        frame(DATA, END_STREAM, stream, data),
                        frame(RST_STREAM, 0, stream, bytes([0, 0, 0, 8])),
                    )
            await eventually(lambda: client.closed)
        served.frontend.may.set()
        await call
        await answers(served)
        await eventually(lambda: not served.server.calls)


async def test_answers_that_are_not_read_are_held_and_then_dropped() -> None:
    """Of 1,000 streams with a window of no bytes; the connection's other streams go on."""
    async with serving(write_timeout=1) as (served, _):
        served.frontend.times = 1000
        served.frontend.may.set()
        settings = {ngh2.Setting.INITIAL_WINDOW_SIZE: 0}
        async with connected(served.address, settings) as client:
            streams = [client.ask(request()) for _ in range(1000)]
            await eventually(lambda: served.requests(200) == 1000)
            await answers(served)
            assert await client.status(client.ask(b"broken", path=HEALTH))
            await eventually(lambda: served.budget.held == 0)
            await eventually(lambda: not served.server.calls)
            assert not any(client.data[stream] for stream in streams)


async def test_calls_that_do_not_arrive_make_room_for_others() -> None:
    async with serving(max_rpcs=100, max_connections=20) as (served, _):
        served.frontend.may.set()
        async with connected(served.address) as one, connected(served.address) as other:
            opened = [(client, client.ask(None)) for client in (one, other) for _ in range(200)]
            await eventually(lambda: sum(map(len, (one.statuses, other.statuses))) >= 180)
            await answers(served)
            refused = [client.statuses[stream] for client, stream in opened]
            codes = {int(each[b"grpc-status"]) for each in refused if each}
            assert codes == {code_pb2.RESOURCE_EXHAUSTED}


async def test_health_is_told_while_clients_begin_calls_that_are_one_too_many() -> None:
    async with serving(max_rpcs=100, max_connections=20) as (served, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address)) for _ in range(4)]
        async with served.channel() as channel:
            for _ in range(50):
                for client in clients:
                    for _ in range(50):
                        client.ask(None)
                assert await method(channel, HEALTH)(b"", timeout=60)
        assert served.server.calls <= 100 + 20 + 2 * RESERVE


async def test_calls_for_health_that_do_not_arrive_are_bounded_too() -> None:
    async with (
        serving(max_rpcs=1, max_connections=4) as (served, _),
        connected(served.address) as one,
        connected(served.address) as other,
        connected(served.address) as third,
        connected(served.address) as idle,
    ):
        for client in (one, other, third):
            for _ in range(90):
                client.ask(None, path=HEALTH)
        await eventually(lambda: served.refused("max_rpcs") > 0)
        await eventually(lambda: served.server.calls <= 1 + 4 + 2 * RESERVE)
        assert await idle.status(idle.ask(b"", path=HEALTH)) == (code_pb2.OK, "")


async def test_reflection_that_is_not_read_ends() -> None:
    async with serving() as (served, _):
        settings = {ngh2.Setting.INITIAL_WINDOW_SIZE: 0}
        async with connected(served.address, settings) as client:
            ask = ServerReflectionRequest(list_services="*").SerializeToString()
            stream = client.ask(None, path=REFLECT)
            for _ in range(20):
                client.h2.send_data(stream, prefixed(ask) * 1000)
                client.flush()
            await eventually(lambda: served.refused("admission") == 1)
        served.frontend.may.set()
        await answers(served)


async def test_messages_are_bounded_once_they_are_decompressed() -> None:
    limits = {"max_body": 2**20, "max_in_flight": 2**20}
    async with serving(**limits) as (served, _), connected(served.address) as client:
        bomb = prefixed(gzip.compress(bytes(2**17)), 1)
        stream = client.ask(None, GZIP, path=HEALTH)
        client.h2.send_data(stream, bomb, end_stream=True)
        client.flush()
        assert (await client.status(stream))[0] == code_pb2.RESOURCE_EXHAUSTED
        stream = client.ask(None, GZIP)
        client.h2.send_data(stream, prefixed(gzip.compress(request(20_000)), 1))
        client.h2.end_stream(stream)
        client.flush()
        # The message, and twice the rows of the answer.
        await eventually(lambda: served.budget.held > 3 * 320_000)
