"""Upstreams that are to load their models, by `--load-upstream`, where they cannot be told to."""

from pathlib import Path

import pytest

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events
from fake_upstream import FakeUpstream
from parity_models.serving.remote.upstream import PredictionProtocol, UpstreamError
from parity_models.serving.rest.protocol import SOFTWARE
from upstream_engines import WEIGHTS, engine_for

V1, V2 = PredictionProtocol.V1, PredictionProtocol.V2


@pytest.mark.parametrize(("scheme", "protocol"), [("http", V1), ("http", V2), ("grpc", V2)])
async def test_one_that_starts_is_waited_for(
    model: Path, scheme: str, protocol: PredictionProtocol
) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS, software=SOFTWARE) as one,
        FakeUpstream(scheme, WEIGHTS, software=SOFTWARE) as other,
    ):
        engine, events = engine_for(model, one, other, loads=True, protocol=protocol), Events()
        other.mode = fake.AWAY
        await engine.start([DEPLOYED] * 2, events)
        try:
            assert (await events.arrival()).instance == "0.0"
            other.mode = fake.WELL
            assert (await events.arrival()).instance.startswith("1.0")
        finally:
            await engine.stop()
        one.mode = fake.AWAY
        engine = engine_for(model, one, loads=True, protocol=protocol)
        with pytest.raises(UpstreamError, match="ready") as caught:
            await engine.start([DEPLOYED], Events())
        assert caught.value.passes
