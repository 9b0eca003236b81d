"""The transport over grpcio bounds what arrives, whose size gRPC does not say."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from parity_models.serving.errors import RefusedError
from parity_models.serving.grpc.over_grpcio import GrpcServer
from parity_models.serving.inference import Inference
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics


class Arriving:
    """A call whose message never arrives."""

    reading = 0

    def __init__(self, address: str) -> None:
        self.address = address

    def peer(self) -> str:
        return f"ipv4:{self.address}:1000"

    async def read(self) -> bytes:
        Arriving.reading += 1
        try:
            await asyncio.Event().wait()
        finally:
            Arriving.reading -= 1
        return b""


def receiving(seconds: float) -> GrpcServer:
    limits = Limits(max_body=2000, max_in_flight=8000, body_timeout=seconds)
    models: Any = SimpleNamespace(metrics=Metrics())  # nothing else is asked
    return GrpcServer(Inference(models, ByteBudget(8000)), limits)


async def test_messages_that_arrive_are_few_and_half_of_them_from_one_address() -> None:
    """Their sizes are unknown, so what they hold is bounded by their number."""
    addresses = ["10.0.0.1"] * 5 + ["10.0.0.2"]
    contexts: list[Any] = [Arriving(address) for address in addresses]
    patient, service = receiving(600.0), receiving(0.1)
    calls = [asyncio.ensure_future(patient._read(each)) for each in contexts]
    for _ in range(5):
        await asyncio.sleep(0)
    assert Arriving.reading == 3
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    for each in contexts[:2]:
        with pytest.raises(RefusedError, match=r"within the body_timeout of 0\.1 s"):
            await service._read(each)
    assert Arriving.reading == 0
