"""Upstreams that are busy are left alone for a while; no more than half are out for doubts."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import fake_upstream as fake
from engine_conformance import Failed, Finished, Left
from fake_upstream import FakeUpstream
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote import remote_engine as link
from upstream_engines import ROW, WEIGHTS, using

UNITS = 8
"""More units at a time than an engine keeps connections when it has none."""


@pytest.mark.parametrize(
    ("scheme", "busy", "retry_after", "rest"),
    [
        ("http", 503, None, link.MIN_REST),
        ("http", 503, "1.5", 1.5),
        ("http", 429, "3600", link.MAX_REST),
        ("http", 429, "-1", link.MIN_REST),
        ("http", 503, "Fri, 31 Dec 2999 23:59:59 GMT", link.MAX_REST),
        ("http", 503, "soon", link.MIN_REST),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, None, link.MIN_REST),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5, 1.5),
        ("grpc", grpc.StatusCode.UNAVAILABLE, 1.5, 1.5),
        ("grpc", grpc.StatusCode.UNAVAILABLE, None, link.MIN_REST),
    ],
)
async def test_a_busy_upstream_is_left_alone_for_a_while_and_keeps_its_units(
    model: Path, scheme: str, busy: Any, retry_after: Any, rest: float
) -> None:
    metrics = Metrics()
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        using(model, upstream, metrics=metrics, concurrency=3) as (engine, events, _),
    ):
        upstream.mode = fake.HELD
        engine.run("0.0", 1, "deployed", [ROW])
        while upstream.asked < 2:
            await asyncio.sleep(0.01)
        upstream.mode, upstream.busy, upstream.retry_after = fake.BUSY, busy, retry_after
        engine.run("0.1", 2, "deployed", [ROW])
        first = await events.next()
        assert isinstance(first, Failed)
        assert first.detail == "instance 0.1 is busy"
        assert first.busy == pytest.approx(rest, rel=0.3)
        asked = upstream.asked
        if rest > 1:
            # Its other slots take nothing meanwhile, either, and it is not even asked.
            engine.run("0.2", 3, "deployed", [ROW])
            second = await events.next()
            assert isinstance(second, Failed)
            assert 0 < second.busy <= first.busy
            assert upstream.asked == asked
        upstream.release.set()
        await events.outputs(1)
        assert events.nothing_more()
        assert engine.running() == {"0.0": None, "0.1": None, "0.2": None}
        value = metrics.registry.get_sample_value
        assert (value("parm_upstream_busy_total", {"upstream": upstream.url}) or 0) >= 1
        assert "parm_upstream_ejections_total" not in {
            sample.name for family in metrics.registry.collect() for sample in family.samples
        }


async def test_an_upstream_that_stays_busy_is_asked_less_and_less_often(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.BUSY
        rests = []
        for unit in range(4):
            engine.run(instance, unit, "deployed", [ROW])
            event = await events.next()
            assert isinstance(event, Failed)
            rests.append(event.busy)
            await asyncio.sleep(event.busy)
        assert rests == pytest.approx([0.05, 0.1, 0.2, 0.4], rel=0.3)
        upstream.mode = fake.WELL
        engine.run(instance, 5, "deployed", [ROW])
        await events.outputs(5)


@pytest.mark.parametrize("mode", [fake.AWAY, fake.ERROR, fake.HUNG])
@pytest.mark.slow
async def test_no_more_than_half_are_ejected_for_doubts(
    model: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as one,
        FakeUpstream("http", WEIGHTS) as two,
        FakeUpstream("http", WEIGHTS) as three,
        using(model, one, two, three, unit_timeout=0.3) as (engine, events, _),
    ):
        for each in (one, two, three):
            each.mode = mode
        gone: set[str] = set()
        for unit in range(30):
            instance = f"{unit % 3}.0"
            if instance not in gone and mode != fake.AWAY:
                engine.run(instance, unit, "deployed", [ROW])
                while isinstance(event := await events.next(), Left):
                    gone.add(event.instance)
                    if event.instance == instance:
                        break
                else:
                    assert isinstance(event, Failed)
        while "stays in use" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        while not events.nothing_more():
            event = await events.next()
            assert isinstance(event, Left)
            gone.add(event.instance)
        assert len(gone) == 1
        assert engine.running().keys() == {"0.0", "1.0", "2.0"} - gone


async def test_one_that_is_unreachable_is_out_however_many_are(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as one:
        other = FakeUpstream("http", WEIGHTS)
        await other.__aenter__()
        async with using(model, one, other) as (engine, events, _):
            one.mode = fake.AWAY
            await events.departure("0.0")
            await other.__aexit__(None, None, None)
            await events.departure("1.0")
            assert engine.running() == {}


async def test_what_is_recycled_is_checked_anew(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, metrics=metrics) as (engine, events, instance),
    ):
        upstream.mode = fake.HUNG
        engine.run(instance, 1, "deployed", [ROW])
        assert engine.running() == {instance: 1}
        upstream.mode = fake.OTHER
        engine.recycle(instance, "it has answered wrongly")
        engine.recycle(instance, "it has answered wrongly")
        assert "it has answered wrongly" in await events.departure(instance)
        labels = {"upstream": upstream.url, "fault": "recycled"}
        assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
        while "predicts something else" not in caplog.text:
            await asyncio.sleep(0.01)
        assert engine.running() == {}
        upstream.mode = fake.WELL
        joined = await events.arrival()
        assert joined.instance != instance
        engine.recycle(instance, "it is gone")
        engine.run(joined.instance, 2, "deployed", [ROW])
        await events.outputs(2)
        assert events.nothing_more()


async def test_out_of_descriptors_no_upstream_is_at_fault(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, concurrency=UNITS) as (engine, events, _),
    ):
        upstream.mode = fake.HELD
        with no_further_descriptors():
            for unit in range(UNITS):
                engine.run(f"0.{unit}", unit, "deployed", [ROW])
            first = await events.next()
        assert isinstance(first, Failed)
        assert first.busy > 0
        upstream.mode = fake.WELL
        upstream.release.set()
        rest = [await events.next() for _ in range(UNITS - 1)]
        assert all(isinstance(each, Failed | Finished) for each in rest), rest
        await asyncio.sleep(first.busy)
        engine.run(f"0.{first.unit}", UNITS, "deployed", [ROW])
        await events.outputs(UNITS)


@contextmanager
def no_further_descriptors() -> Iterator[None]:
    """Let this process open nothing meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
