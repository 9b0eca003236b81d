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


async def test_few_messages_arrive_at_a_time() -> None:
    """Their sizes are unknown, so what they hold is bounded by their number."""
    context: Any = Arriving()
    patient, service = receiving(600.0), receiving(0.1)
    calls = [asyncio.ensure_future(patient._read(context)) for _ in range(6)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert Arriving.reading == 4
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    with pytest.raises(RefusedError, match=r"within the body_timeout of 0\.1 s"):
        await service._read(context)
    assert Arriving.reading == 0
