"""What gRPC clients can make the server hold has bounds, and what they give up is let go."""

import asyncio
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.asked import Answers
from parity_models.serving.errors import AbandonedError, OverloadedError, RequestError
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest, ServerReadyRequest
from parity_models.serving.grpc.methods import guarded
from parity_models.serving.grpc.server import GrpcServer
from parity_models.serving.grpc.unread import close_connection
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.served_model import ServedModel

SPEC = TensorSpec("x", "FP32", (4,))
INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = "/inference.GRPCInferenceService/ServerReady"


class Waiting:
    """A frontend that answers when it is told to, with the rows themselves."""

    ready = True
    quarantined = ()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0
        self.abandoned = 0
        self.error: RequestError | None = None
        self.widen = 1

    async def infer(
        self, rows: NDArray[Any], timeout: float | None = None, **sharing: object
    ) -> Answers:
        self.asked += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        if self.error is not None:
            raise self.error
        return Answers(np.tile(rows, (1, self.widen)), [Source.MODEL] * len(rows))


class Served:
    def __init__(self, frontend: Waiting, budget: ByteBudget, metrics: Metrics, address: str):
        self.frontend, self.budget, self.metrics = frontend, budget, metrics
        self.address = address

    def channel(self, **options: int) -> grpc.aio.Channel:
        apart = {"grpc.use_local_subchannel_pool": 1, "grpc.max_receive_message_length": -1}
        return grpc.aio.insecure_channel(self.address, [*(apart | options).items()])

    def ended(self, reason: str) -> float:
        labels = {"limit": reason}
        name = "parm_connections_ended_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def requests(self, status: int) -> float:
        labels = {"code": str(status)}
        return self.metrics.registry.get_sample_value("parm_requests_total", labels) or 0


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[Served, Any]]:
    """A server with these limits, and the method ModelInfer, on bytes, of a channel to it."""
    frontend, metrics = Waiting(), Metrics()
    bounds = Limits(**limits)
    budget = ByteBudget(bounds.max_in_flight)
    model = ServedModel("model", SPEC, SPEC, max_rows=10**6)
    server = GrpcServer(frontend, model, metrics, bounds, budget)
    url = await server.start("127.0.0.1", 0)
    served = Served(frontend, budget, metrics, url.removeprefix("grpc://"))
    channel = served.channel()
    try:
        yield served, method(channel)
    finally:
        frontend.go.set()
        await channel.close()
        await server.stop()
        assert budget.held == 0


def method(
    channel: grpc.aio.Channel, name: str = INFER
) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(name)


def request(rows: int = 1) -> bytes:
    message = ModelInferRequest(model_name="model")
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 4))
    message.raw_input_contents.append(bytes(16 * rows))
    return message.SerializeToString()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def delay(error: grpc.aio.AioRpcError) -> float:
    """What google.rpc.RetryInfo says, in seconds, as clients read it."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    (detail,) = status.details
    info = RetryInfo()
    assert detail.Unpack(info)
    seconds: float = info.retry_delay.ToTimedelta().total_seconds()
    return seconds


async def test_overload_is_resource_exhausted_and_says_when_to_come_back() -> None:
    async with serving() as (served, infer):
        served.frontend.error = OverloadedError("too much", retry_after=0.25)
        served.frontend.go.set()
        with pytest.raises(grpc.aio.AioRpcError, match="too much") as error:
            await infer(request())
        assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert delay(error.value) == 0.25
        assert served.requests(503) == 1
        served.frontend.error = AbandonedError("gone")
        with pytest.raises(grpc.aio.AioRpcError, match="gone") as error:
            await infer(request())
        assert error.value.code() is StatusCode.CANCELLED
        assert rpc_status.from_call(error.value) is None


async def test_the_call_too_many_is_refused_and_health_is_still_told() -> None:
    async with serving(max_rpcs=2) as (served, infer):
        two = [asyncio.ensure_future(infer(request())) for _ in range(2)]
        await until(lambda: served.frontend.asked == 2)
        with pytest.raises(grpc.aio.AioRpcError, match="at most 2 gRPC calls at a time") as error:
            await infer(request())
        assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert delay(error.value) > 0
        assert served.requests(503) == 1
        async with served.channel() as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
            assert (await health.Check(health_pb2.HealthCheckRequest())).status
            assert await method(channel, READY)(ServerReadyRequest().SerializeToString())
        served.frontend.go.set()
        await asyncio.gather(*two)
        await infer(request())


@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
async def test_what_a_client_gives_up_is_abandoned(how: str) -> None:
    async with serving() as (served, _), served.channel() as channel:
        call = method(channel)(request(), timeout=0.5 if how == "deadline" else None)
        waited = asyncio.ensure_future(call.code())
        await until(lambda: served.frontend.asked == 1)
        assert served.frontend.abandoned == 0
        if how == "cancel":
            call.cancel()
        elif how == "connection":
            await channel.close()
        await until(lambda: served.frontend.abandoned == 1)
        await until(lambda: served.requests(499) == 1)
        await waited


async def test_a_refusal_whose_client_has_just_gone_is_not_logged_as_an_error() -> None:
    class Gone:
        async def abort(self, *_: object) -> None:
            raise grpc.aio.InternalError("execute_batch failed")  # as gRPC does then

    async def refuse(*_: object) -> Any:
        raise OverloadedError("too much", retry_after=0.25)

    with pytest.raises(asyncio.CancelledError):  # which gRPC takes for the client's leave
        # Of a context, only `abort` is used here.
        await guarded(refuse)(None, Gone())  # type: ignore[arg-type]


async def test_the_bytes_of_all_messages_have_a_budget() -> None:
    most = 3000
    async with serving(max_body=2000, max_in_flight=most) as (served, infer):
        first = asyncio.ensure_future(infer(request(100)))
        await until(lambda: served.frontend.asked == 1)
        assert served.budget.held == 1600  # what is left of the message: its rows
        with pytest.raises(grpc.aio.AioRpcError, match=f"exceed the {most}") as error:
            await infer(request(100))
        assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert delay(error.value) > 0
        served.frontend.go.set()
        await first
        assert served.budget.held == 0
        await infer(request(100))


async def test_a_message_beyond_the_limit_is_refused() -> None:
    async with serving(max_body=2000) as (served, infer):
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as error:
            await infer(request(1000))
        assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert served.frontend.asked == 0


async def test_a_message_that_would_be_large_once_parsed_is_refused_unparsed() -> None:
    async with serving() as (served, infer), served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="more than 1000 fields") as error:
            await infer(b"\x2a\x00" * 2**20)
        assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError, match="at most 65536"):
            await method(channel, READY)(b"\xf8\x07\x00" * 2**20)
        assert served.requests(413) == 1


async def test_a_message_that_does_not_come_ends_its_call() -> None:
    async with serving(body_timeout=0.4) as (served, _), served.channel() as channel:
        ask: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(INFER)
        silent = ask()
        assert await silent.code() is StatusCode.DEADLINE_EXCEEDED
        assert "not whole within 0.4 s" in await silent.details()
        empty = ask()
        await empty.done_writing()
        assert await empty.code() is StatusCode.INVALID_ARGUMENT
        assert "no message" in await empty.details()


async def test_messages_that_come_slowly_leave_budget_to_others() -> None:
    limits = {"max_body": 1000, "max_in_flight": 4000}
    async with serving(**limits) as (served, infer), served.channel() as channel:
        ask: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(INFER)
        slow = [ask() for _ in range(5)]
        states = [asyncio.ensure_future(each.code()) for each in slow]
        await until(lambda: sum(state.done() for state in states) == 3)
        assert served.budget.held == 2000
        refused = [each for each, state in zip(slow, states, strict=True) if state.done()]
        for each in refused:
            assert await each.code() is StatusCode.RESOURCE_EXHAUSTED
            assert "at most 2 gRPC messages that arrive slowly" in await each.details()
        served.frontend.go.set()
        await infer(request(50))
        for each in slow:
            each.cancel()
        await until(lambda: served.budget.held == 0)


async def test_the_connection_of_a_client_that_has_stopped_is_closed() -> None:
    """The client is a process that stops once it has asked, and its answer is large."""
    async with serving(idle_timeout=1, head_timeout=1) as (served, _):
        served.frontend.widen = 2_000_000
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, served.address, stdin=PIPE, stdout=PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(request())
        client.stdin.close()
        await until(lambda: served.frontend.asked == 1)
        client.send_signal(signal.SIGSTOP)
        served.frontend.go.set()
        await until(lambda: served.requests(200) == 1)
        await asyncio.sleep(3)
        client.send_signal(signal.SIGCONT)
        assert await client.stdout.read() == b"UNAVAILABLE"
        await client.wait()


ASK = f"""
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1], [("grpc.max_receive_message_length", -1)])
try:
    channel.unary_unary({INFER!r})(sys.stdin.buffer.read())
    print("OK", end="")
except grpc.RpcError as error:
    print(error.code().name, end="")
"""
"""Asks the server at its argument what it reads, and says how that ends."""


async def test_an_answer_that_is_never_read_ends_its_connection_and_is_held_till_then() -> None:
    """The client answers pings, but leaves the server no room in HTTP/2's window."""
    async with serving(write_timeout=0.5) as (served, infer):
        served.frontend.go.set()
        client = asyncio.create_task(ask_and_never_read(served.address, request(1000)))
        await until(lambda: served.requests(200) == 1)
        await asyncio.sleep(0.1)
        assert served.budget.held > 16_000
        await infer(request())  # which others do not notice
        await until(lambda: served.budget.held == 0)
        await asyncio.wait_for(client, 5)
        assert served.ended("write timeout") == 1
        await infer(request())


@pytest.mark.parametrize(
    ("host", "peer"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}")]
)
def test_the_connection_of_a_peer_alone_is_closed(host: str, peer: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client, server.accept()[0] as accepted:
            name = peer.format(client.getsockname()[1])
            assert not close_connection(name, port + 1)
            assert not close_connection(peer.format(1), port)
            accepted.sendall(b"still there")
            assert client.recv(100) == b"still there"
            assert close_connection(name, port)
            assert client.recv(100) == b""
    assert not close_connection("unix:", port)


async def test_an_answer_that_is_read_in_time_keeps_its_connection() -> None:
    async with serving(write_timeout=0.2) as (served, infer):
        served.frontend.go.set()
        served.frontend.widen = 10_000
        await infer(request(10))
        await asyncio.sleep(0.6)
        assert served.budget.held == 0
        assert served.ended("write timeout") == 0


async def ask_and_never_read(address: str, message: bytes) -> None:
    """A call whose stream's window is 0 (RFC 9113, section 6.9), until the connection is over."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))

    def send(kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        writer.write(head + payload)

    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": INFER,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    send(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE
    fields = (each.encode() for pair in headers.items() for each in pair)
    literal = [bytes([len(each)]) + each for each in fields]  # RFC 7541, section 6.2.2
    block = b"".join(b"\0" + name + value for name, value in zip(*[iter(literal)] * 2, strict=True))
    send(HEADERS, END_HEADERS, 1, block)
    data = struct.pack(">BI", 0, len(message)) + message
    for start in range(0, len(data), 16_000):
        piece = data[start : start + 16_000]
        send(DATA, END_STREAM if start + 16_000 >= len(data) else 0, 1, piece)
    try:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == PING and not head[4] & ACK:
                send(PING, ACK, 0, payload)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        writer.close()


DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1
"""Of RFC 9113, section 6."""


async def test_the_connection_too_many_is_closed() -> None:
    async with serving(max_connections=2) as (served, infer):
        served.frontend.go.set()
        await infer(request())
        async with served.channel() as second:
            await method(second)(request())
            async with served.channel() as third:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await method(third)(request(), timeout=10)
                assert error.value.code() is StatusCode.UNAVAILABLE
            await infer(request())
