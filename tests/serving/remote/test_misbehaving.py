"""Upstreams that misbehave are named and left out, and taken back when they are well."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events
from fake_upstream import FakeUpstream
from parity_models.serving.client import ANONYMOUS
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote import remote_engine as remote
from parity_models.serving.remote.clients import Connect, RestClient
from parity_models.serving.remote.upstream import (
    Upstream,
    UpstreamError,
    UpstreamModel,
)
from upstream_engines import ROW, WEIGHTS, engine_for, two, using


@pytest.mark.parametrize(
    ("scheme", "mode", "fault", "reason"),
    [
        ("http", fake.NOISE, "garbage", "what cannot be read"),
        ("http", fake.SHORT, "garbage", "15 bytes of data, where 16 were due"),
        ("http", fake.HUGE, "garbage", "more than"),
        ("http", fake.CUT, "unreachable", "cannot be reached"),
        ("http", fake.HUNG, "timeout", "had unit 1 for more than 0.3 s"),
        ("grpc", fake.NOISE, "garbage", "what cannot be read"),
        ("grpc", fake.SHORT, "garbage", "15 bytes of data, where 16 were due"),
        ("grpc", fake.HUNG, "timeout", "had unit 1 for more than 0.3 s"),
    ],
)
async def test_an_upstream_that_misbehaves_is_named_and_out_until_it_is_well(
    model: Path,
    scheme: str,
    mode: str,
    fault: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, patience = Metrics(), 0.3 if mode == fake.HUNG else 60.0
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other, metrics=metrics, unit_timeout=patience) as (
            engine,
            events,
            instance,
        ),
    ):
        upstream.mode = mode
        engine.run(instance, 1, "deployed", [ROW])
        assert reason in await events.departure(instance)
        labels = {"upstream": upstream.url, "fault": fault}
        assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
        assert upstream.url in caplog.text
        assert reason in caplog.text
        if mode == fake.HUNG:
            return  # it has PATIENCE to say that it is well
        asked = upstream.asked
        while upstream.asked < asked + 2:
            await asyncio.sleep(0.01)  # it is tried, and stays out
        assert events.nothing_more()
        upstream.mode = fake.WELL
        joined = await events.arrival()
        assert joined.instance != instance
        engine.run(joined.instance, 2, "deployed", [ROW])
        np.testing.assert_allclose(await events.outputs(2), ROW[np.newaxis] @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_errors_fail_units_and_too_many_in_a_row_eject(
    model: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other) as (engine, events, instance),
    ):
        upstream.mode = fake.ERROR
        for unit in range(1, remote.MAX_FAILURES):
            engine.run(instance, unit, "deployed", [ROW])
            detail = await events.failure(unit)
            # What it said is for the operator: a client hears it from here.
            assert (
                detail == f"instance {instance} answered with an error, which the server's log has"
            )
        assert f"{upstream.url}, instance {instance}: answered" in caplog.text
        assert "not today" in caplog.text
        upstream.mode = fake.WELL
        engine.run(instance, 10, "deployed", [ROW])
        await events.outputs(10)
        upstream.mode = fake.ERROR
        for unit in range(11, 11 + remote.MAX_FAILURES):
            engine.run(instance, unit, "deployed", [ROW])
            await events.failure(unit)
        assert "cannot run model 'model'" in await events.departure(instance)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_units_that_are_wrong_themselves_eject_nobody(model: Path, scheme: str) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.PICKY
        for unit in range(1, 3 * remote.MAX_FAILURES + 1):
            engine.run(instance, unit, "deployed", [ROW])
            assert "answered with an error" in await events.failure(unit)
        while upstream.asked < 1 + 3 * remote.MAX_FAILURES + 1:
            await asyncio.sleep(0.01)  # it is checked, and stays in
        engine.run(instance, 20, "deployed", [ROW / 10])
        await events.outputs(20)


async def test_an_answer_over_grpc_that_is_too_large_is_not_taken(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeUpstream("grpc", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.HUGE
        engine.run(instance, 1, "deployed", [ROW])
        assert "answered with an error" in await events.failure(1)
        assert "larger than max" in caplog.text


class FailingClient(RestClient):
    """Raises `error` from `method`, where there is one; `failed` counts how often."""

    method = ""
    error: Exception
    failed = 0

    async def check_ready(self, model: UpstreamModel) -> None:
        self._fail("check_ready")
        await super().check_ready(model)

    async def infer(self, *arguments: Any) -> NDArray[Any]:
        self._fail("infer")
        return await super().infer(*arguments)

    def _fail(self, method: str) -> None:
        if method == self.method:
            self.failed += 1
            raise self.error


def failing(clients: list[FailingClient]) -> Connect:
    """Makes clients that fail when they are told to."""

    def connect(upstream: Upstream, ca_file: Path | None, max_answer: int) -> FailingClient:
        clients.append(FailingClient(upstream.url, ANONYMOUS))
        return clients[-1]

    return connect


@pytest.mark.parametrize("method", ["infer", "check_ready"])
async def test_what_nobody_foresaw_ejects_the_upstream_until_it_is_over(
    model: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    clients: list[FailingClient] = []
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, connect=failing(clients)) as (engine, events, instance),
    ):
        (client,) = clients
        client.error, client.method = ZeroDivisionError("nobody foresaw this"), method
        if method == "infer":
            engine.run(instance, 1, "deployed", [ROW])
        assert "ZeroDivisionError" in await events.departure(instance)
        tries = caplog.text.count("Traceback")
        while caplog.text.count("Traceback") == tries:
            await asyncio.sleep(0.01)  # it is tried, and stays out
        assert events.nothing_more()
        client.method = ""
        await events.arrival()


@pytest.mark.parametrize("method", ["infer", "check_ready"])
async def test_what_nobody_foresaw_of_an_upstream_ends_the_start(model: Path, method: str) -> None:
    def connect(upstream: Upstream, ca_file: Path | None, max_answer: int) -> FailingClient:
        client = FailingClient(upstream.url, ANONYMOUS)
        client.error, client.method = ZeroDivisionError("nobody foresaw this"), method
        return client

    async with FakeUpstream("http", WEIGHTS) as upstream:
        with pytest.raises(UpstreamError, match="ZeroDivisionError"):
            await engine_for(model, upstream, connect=connect).start([DEPLOYED], Events())


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError("it cannot be said")

    __repr__ = __str__


@pytest.mark.parametrize("method", ["infer", "check_ready"])
async def test_an_error_that_cannot_be_said_ends_no_supervision(model: Path, method: str) -> None:
    clients: list[FailingClient] = []
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, connect=failing(clients)) as (engine, events, instance),
    ):
        (client,) = clients
        client.error, client.method = UnspeakableError(), method
        if method == "infer":
            engine.run(instance, 1, "deployed", [ROW])
        assert "UnspeakableError" in await events.departure(instance)
        while client.failed < 3:
            await asyncio.sleep(0.01)
        client.method = ""
        back = await events.arrival()
        upstream.mode = fake.SHORT
        engine.run(back.instance, 2, "deployed", [ROW])
        await events.departure(back.instance)  # it is supervised as before


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_idle_upstream_that_is_not_ready_is_ejected_by_its_health_check(
    model: Path, scheme: str
) -> None:
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other) as (_, events, instance),
    ):
        upstream.mode = fake.AWAY
        assert "ready" in await events.departure(instance)
        upstream.mode = fake.WELL
        await events.arrival()


async def test_other_weights_after_a_restart_are_not_readmitted(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        two("http") as (upstream, other),
        using(model, upstream, other) as (_, events, instance),
    ):
        upstream.mode = fake.AWAY
        await events.departure(instance)
        upstream.mode = fake.OTHER
        while "predicts something else" not in caplog.text:
            await asyncio.sleep(0.01)
        assert events.nothing_more()


async def test_concurrency_is_that_many_instances(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as upstream:
        engine, events = engine_for(model, upstream, concurrency=3), Events()
        await engine.start([DEPLOYED] * 3, events)
        instances = {(await events.arrival()).instance for _ in range(3)}
        assert len(instances) == 3
        upstream.mode = fake.HUNG
        for unit, instance in enumerate(sorted(instances)):
            engine.run(instance, unit, "deployed", [ROW])
        while upstream.asked < 1 + 3:  # one to check it
            await asyncio.sleep(0.01)
        await engine.stop()
        assert events.nothing_more()


@pytest.mark.parametrize(
    ("mode", "reason"), [(fake.SHORT, "has shape"), (fake.NULL, "cannot be read")]
)
async def test_a_server_without_the_extension_for_binary_data_is_talked_to_in_json(
    model: Path, caplog: pytest.LogCaptureFixture, mode: str, reason: str
) -> None:
    async with (
        FakeUpstream("http", WEIGHTS, binary=False) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        engine.run(instance, 1, "deployed", [ROW, -ROW / 3])
        rows = np.array([ROW, -ROW / 3])
        np.testing.assert_allclose(await events.outputs(1), rows @ WEIGHTS, rtol=1e-6)
        upstream.mode = mode
        engine.run(instance, 2, "deployed", [ROW, ROW])
        await events.failure(2)
        assert reason in caplog.text
        upstream.mode = fake.WELL
        engine.run(instance, 3, "deployed", [ROW])
        await events.outputs(3)
        assert events.nothing_more()


async def test_an_upstream_that_is_away_at_the_start_joins_when_it_is_there(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with FakeUpstream("http", WEIGHTS) as here, FakeUpstream("grpc", WEIGHTS) as away:
        away.mode = fake.AWAY
        engine, events = engine_for(model, here, away, metrics=metrics), Events()
        await engine.start([DEPLOYED] * 2, events)
        try:
            first = await events.arrival()
            assert f"upstream {away.url} says that model 'model' is not ready" in caplog.text
            labels = {"upstream": away.url, "fault": "not ready"}
            assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
            engine.run(first.instance, 1, "deployed", [ROW])
            await events.outputs(1)
            away.mode = fake.WELL
            second = await events.arrival()
            engine.run(second.instance, 2, "deployed", [ROW])
            await events.outputs(2)
        finally:
            await engine.stop()


async def test_a_node_is_a_host_or_where_there_is_but_one_an_upstream(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as one, FakeUpstream("http", WEIGHTS) as two:
        for name, nodes in [
            ("127.0.0.1", {one.url, two.url}),
            ("localhost", {"127.0.0.1", "localhost"}),
        ]:
            two.url = two.url.replace("127.0.0.1", name)
            engine, events = engine_for(model, one, two, concurrency=2), Events()
            await engine.start([DEPLOYED] * 4, events)
            joined = [(await events.arrival()).node for _ in range(4)]
            await engine.stop()
            assert set(joined) == nodes
