"""Upstreams that speak V1: asked by `instances`, understood by `predictions`, and never trusted."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events
from fake_upstream import FakeUpstream
from parity_models.errors import UserError
from parity_models.serving import v1
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import array_from_json
from parity_models.serving.remote.upstream import (
    PredictionProtocol,
    Upstream,
    UpstreamError,
    parse_upstreams,
)
from upstream_engines import ROW, WEIGHTS, engine_for, two, using

V1 = PredictionProtocol.V1
NUMBERS = st.recursive(st.none() | st.floats() | st.text(max_size=3), st.lists)
ANSWERS = st.fixed_dictionaries(
    {"predictions": NUMBERS | st.lists(st.dictionaries(st.just("y"), NUMBERS))}
)


async def test_an_upstream_is_asked_by_instances(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, protocol=V1) as (engine, events, instance),
    ):
        engine.run(instance, 1, "deployed", [ROW, -ROW])
        expected = np.stack([ROW, -ROW]) @ WEIGHTS
        np.testing.assert_allclose(await events.outputs(1), expected, rtol=1e-5)
        assert upstream.heard[-1]["content-type"] == "application/json"
        assert upstream.heard[-1]["x-request-id"] == "of-1"


async def test_values_that_json_cannot_say_fail_their_unit_and_nobody_else(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, protocol=V1) as (engine, events, instance),
    ):
        asked = upstream.asked
        engine.run(instance, 1, "deployed", [np.full_like(ROW, np.nan)])
        assert "answered with an error" in await events.failure(1)
        assert "not finite, which JSON, and so V1, cannot say" in caplog.text
        assert upstream.asked == asked
        engine.run(instance, 2, "deployed", [ROW])
        await events.outputs(2)


@pytest.mark.parametrize(
    ("mode", "fault", "reason"),
    [
        (fake.NOISE, "garbage", "what cannot be read"),
        (fake.HUGE, "garbage", "more than"),
        (fake.CUT, "unreachable", "cannot be reached"),
    ],
)
async def test_one_that_misbehaves_is_named_and_out_until_it_is_well(
    model: Path, mode: str, fault: str, reason: str
) -> None:
    metrics = Metrics()
    async with (
        two("http") as (upstream, other),
        using(model, upstream, other, metrics=metrics, protocol=V1) as (engine, events, instance),
    ):
        upstream.mode = mode
        engine.run(instance, 1, "deployed", [ROW])
        assert reason in await events.departure(instance)
        labels = {"upstream": upstream.url, "fault": fault}
        assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
        upstream.mode = fake.WELL
        joined = await events.arrival()
        engine.run(joined.instance, 2, "deployed", [ROW])
        np.testing.assert_allclose(await events.outputs(2), ROW[np.newaxis] @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("mode", [fake.NULL, fake.SHORT, fake.ERROR])
async def test_an_error_or_what_is_no_number_fails_the_unit(model: Path, mode: str) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, protocol=V1) as (engine, events, instance),
    ):
        upstream.mode = mode
        engine.run(instance, 1, "deployed", [ROW])
        assert "answered with an error" in await events.failure(1)


@pytest.mark.parametrize(
    ("mode", "reason"), [(fake.OTHER, "predicts something else"), (fake.AWAY, "is not ready")]
)
async def test_another_model_is_told_by_what_it_predicts_and_one_that_is_not_ready_waits(
    model: Path, mode: str, reason: str
) -> None:
    async with FakeUpstream("http", WEIGHTS) as upstream:
        upstream.mode = mode
        with pytest.raises(UpstreamError, match=reason):
            await engine_for(model, upstream, protocol=V1).start([DEPLOYED], Events())


async def test_one_that_is_busy_is_left_alone_as_it_asks(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, protocol=V1) as (engine, events, instance),
    ):
        upstream.mode, upstream.busy, upstream.retry_after = fake.BUSY, 429, 2.0
        engine.run(instance, 1, "deployed", [ROW])
        event = await events.next()
        assert getattr(event, "busy", 0) == pytest.approx(2.0, abs=0.2)


@given(st.binary() | st.text().map(str.encode) | ANSWERS.map(json.dumps).map(str.encode))
def test_whatever_it_answers_is_read_or_refused(answer: bytes) -> None:
    with suppress(InvalidRequestError):
        rows = v1.read_predictions(answer, ["y"])["y"]
        assert array_from_json(rows, "FP32", (2, 2), "y").shape == (2, 2)


def test_urls_and_options_say_which_protocol_is_spoken() -> None:
    one, other = parse_upstreams(
        "m",
        0,
        deployed=["http://a?protocol=v1&concurrency=3", "grpc://b:1?protocol=v2"],
    )
    assert one == Upstream("http://a", {"deployed": "m"}, 3, V1)
    assert other.protocol is PredictionProtocol.V2


@pytest.mark.parametrize(
    ("deployed", "reason"),
    [
        (["http://a?protocol=v3"], "protocol=v1 or v2"),
        (["http://a?protocol=v1&protocol=v1"], "is not an upstream"),
        (["grpc://a:1?protocol=v1"], "V1 is spoken over http and https alone"),
    ],
)
def test_what_cannot_be_spoken_is_refused(deployed: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_upstreams("m", 1, deployed=deployed)
