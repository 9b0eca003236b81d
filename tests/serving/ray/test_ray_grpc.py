"""What Ray Serve's proxy passes on to replicas of a call over gRPC: its own server, no cluster."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve.grpc_util import RayServegRPCContext

from grpc_served import INFER, READY, method
from parity_models.serving.grpc.service import SERVICE
from parity_models.serving.ray.grpc import RayCall, add_inference


class Servicer:
    def __getattr__(self, name: str) -> str:
        return name


async def test_the_clients_time_limit_is_known_to_who_answers() -> None:
    told: list[float | None] = []

    def proxy(service_method: str, streaming_type: object) -> Callable[..., Any]:
        async def answer(request: bytes, context: Any) -> bytes:
            assert service_method in (INFER, READY)
            told.append(RayCall(RayServegRPCContext(context)).time_remaining())
            return request

        return answer

    server = gRPCGenericServer(proxy)
    add_inference(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await method(channel)(b"asked", timeout=60) == b"asked"
            assert await method(channel, READY)(b"") == b""
            forged = (("parm-time-remaining", "nonsense"),)
            await method(channel)(b"", metadata=forged)
            nowhere = f"/{SERVICE.full_name}/Nothing"
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await method(channel, nowhere)(b"")
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)
    first, *others = told
    assert first is not None
    assert 0 < first < 61, "gRPC writes a time limit in three digits, rounded up"
    assert others == [None, None]
