"""Units that nobody needs any more are ended on upstreams that notice."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import fake_upstream as fake
from engine_conformance import Failed
from fake_upstream import FakeUpstream
from parity_models.serving.protocol import SOFTWARE
from parity_models.serving.remote.upstream import PredictionProtocol
from upstream_engines import ROW, WEIGHTS, using


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_the_call_of_a_cancelled_unit_ends_and_its_slot_is_free_at_once(
    model: Path, scheme: str
) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS, software=SOFTWARE) as upstream,
        using(model, upstream, concurrency=2) as (engine, events, _),
    ):
        upstream.mode = fake.HELD
        asked = upstream.asked
        engine.run("0.0", 1, "deployed", [ROW])
        engine.run("0.1", 2, "deployed", [ROW])
        while upstream.asked < asked + 2:
            await asyncio.sleep(0.01)
        engine.cancel("0.0", 99)
        engine.cancel("0.0", 1)
        assert engine.running() == {"0.0": None, "0.1": 2}
        engine.cancel("0.0", 1)
        event = await events.next()
        assert isinstance(event, Failed)
        assert (event.unit, event.busy) == (1, 0.0)
        while upstream.abandoned < 1:
            await asyncio.sleep(0.01)
        upstream.mode = fake.WELL
        engine.run("0.0", 3, "deployed", [ROW])
        np.testing.assert_allclose(await events.outputs(3), ROW[None] @ WEIGHTS, rtol=1e-5)
        upstream.release.set()
        await events.outputs(2)
        assert upstream.abandoned == 1
        assert events.nothing_more()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_unit_that_is_cancelled_before_it_was_sent_is_never_sent(
    model: Path, scheme: str
) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS, software=SOFTWARE) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        asked = upstream.asked
        engine.run(instance, 1, "deployed", [ROW])
        engine.cancel(instance, 1)
        assert isinstance(await events.next(), Failed)
        engine.run(instance, 2, "deployed", [ROW])
        await events.outputs(2)
        assert upstream.asked == asked + 1


@pytest.mark.parametrize(
    ("scheme", "protocol", "software"),
    [
        *(("http", protocol, "triton") for protocol in PredictionProtocol),
        *(("grpc", PredictionProtocol.V2, software) for software in ("triton", None)),
    ],
)
async def test_others_are_busy_until_they_answer(
    model: Path, scheme: str, protocol: PredictionProtocol, software: str | None
) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS, software=software) as upstream,
        using(model, upstream, protocol=protocol) as (engine, events, instance),
    ):
        upstream.mode = fake.HELD
        asked = upstream.asked
        engine.run(instance, 1, "deployed", [ROW])
        while upstream.asked == asked:
            await asyncio.sleep(0.01)
        engine.cancel(instance, 1)
        assert engine.running() == {instance: 1}
        upstream.release.set()
        await events.outputs(1)
        assert upstream.abandoned == 0
