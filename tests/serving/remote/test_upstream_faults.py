"""Upstreams that misbehave or are busy, over each protocol, and what the remote engine does."""

import asyncio
import resource
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events, Failed, Finished, Left
from fake_upstream import FakeUpstream
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import SOFTWARE
from parity_models.serving.remote import remote_engine as remote
from parity_models.serving.remote.clients import RestClient
from upstream_engines import ROW, WEIGHTS, engine_for, left, one, two, using

UNITS = 8
"""More units at a time than an engine keeps connections when it has none."""

Wire = dict[str, Any]
"""Scheme and protocol."""
V1: Wire = {"scheme": "http", "protocol": "v1"}
V2: Wire = {"scheme": "http"}
GRPC: Wire = {"scheme": "grpc"}
HTTP, WIRES = [V1, V2], [V1, V2, GRPC]
ERROR = "answered with an error; see the server's log"


def ejections(metrics: Metrics, upstream: FakeUpstream, fault: str) -> float | None:
    labels = {"upstream": upstream.url, "fault": fault}
    return metrics.registry.get_sample_value("parm_upstream_ejections_total", labels)


async def asked(upstream: FakeUpstream, count: int) -> None:
    """Wait until the upstream has been asked for so many units, those of checks among them."""
    while upstream.asked < count:
        await asyncio.sleep(0.01)


# Faults


@pytest.mark.parametrize(
    ("wire", "mode", "fault", "reason"),
    [
        *((wire, fake.NOISE, "garbage", "that cannot be read") for wire in WIRES),
        *((wire, fake.HUGE, "garbage", "more than") for wire in HTTP),
        *((wire, fake.CUT, "unreachable", "cannot be reached") for wire in HTTP),
        *((wire, fake.SHORT, "garbage", "15 bytes of data, where 16 were") for wire in (V2, GRPC)),
    ],
)
@pytest.mark.slow
async def test_an_upstream_that_misbehaves_is_named_and_out_until_it_is_well(
    model: Path, wire: Wire, mode: str, fault: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with two(model, **wire, metrics=metrics) as (upstream, engine, events, first):
        upstream.mode = mode
        engine.run(first, 1, "deployed", [ROW])
        assert reason in await events.departure(first)
        assert ejections(metrics, upstream, fault) == 1
        assert f"{upstream.url} " in caplog.text
        assert reason in caplog.text
        await asked(upstream, upstream.asked + 2)  # it is tried, and stays out
        assert events.nothing_more()
        upstream.mode = fake.WELL
        joined = await events.arrival()
        assert joined.instance != first
        engine.run(joined.instance, 2, "deployed", [ROW])
        np.testing.assert_allclose(await events.outputs(2), ROW[np.newaxis] @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("wire", WIRES)
async def test_errors_fail_units_and_eject_nothing_that_passes_its_checks(
    model: Path, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(model, **wire) as (upstream, engine, events, instance):
        upstream.mode = fake.PICKY
        for unit in range(5):  # the units' own fault
            engine.run(instance, unit, "deployed", [ROW])
            # The upstream's words are for the operator: a client hears them from here.
            assert await events.failure(unit) == f"instance {instance} {ERROR}"
        assert f"{upstream.url}, instance {instance}: answered" in caplog.text
        assert "above 1" in caplog.text
        engine.run(instance, 5, "deployed", [ROW / 10])
        await events.outputs(5)
        upstream.mode = fake.ERROR
        engine.recycle(instance, "fails units")
        assert "is to be checked anew" in await events.departure(instance)
        while "cannot run model 'model'" not in caplog.text:
            await asyncio.sleep(0.01)
        upstream.mode = fake.WELL
        await events.arrival()


@pytest.mark.parametrize(
    ("wire", "mode", "reason"),
    [
        (GRPC, fake.HUGE, "larger than max"),
        *((wire, fake.SHORT, "another shape") for wire in (V1, {"given": {"binary": False}})),
        *((wire, fake.NULL, "cannot be read") for wire in (V1, {"given": {"binary": False}})),
    ],
)
async def test_an_answer_that_may_be_the_unit_s_fault_fails_the_unit_alone(
    model: Path, wire: Wire, mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with one(model, **wire) as (upstream, engine, events, instance):
        rows = np.array([ROW, -ROW / 3])
        engine.run(instance, 1, "deployed", list(rows))
        np.testing.assert_allclose(await events.outputs(1), rows @ WEIGHTS, rtol=1e-5)
        upstream.mode = mode
        engine.run(instance, 2, "deployed", list(rows))
        assert ERROR in await events.failure(2)
        assert reason in caplog.text
        upstream.mode = fake.WELL
        engine.run(instance, 3, "deployed", [ROW])
        await events.outputs(3)
        assert events.nothing_more()


async def test_value_without_json_form_fails(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with one(model, **V1) as (upstream, engine, events, instance):
        before = upstream.asked
        engine.run(instance, 1, "deployed", [np.full_like(ROW, np.nan)])
        assert ERROR in await events.failure(1)
        assert "not finite, which JSON, and so V1, cannot express" in caplog.text
        assert upstream.asked == before


async def test_an_unforeseen_error_ejects_the_upstream_until_it_is_over(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fail(*arguments: Any) -> None:
        nonlocal tries
        tries += 1
        raise ZeroDivisionError("unforeseen")

    async with one(model) as (_, engine, events, instance):
        with monkeypatch.context() as broken:
            broken.setattr(RestClient, "infer", fail)
            engine.run(instance, 1, "deployed", [ROW])
            assert "ZeroDivisionError" in await events.departure(instance)
            assert "unforeseen" in caplog.text
            while tries < 3:
                await asyncio.sleep(0.01)  # it is tried, and stays out
            assert events.nothing_more()
        await events.arrival()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_upstream_with_a_new_version_is_checked_at_once(
    model: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(model, scheme) as (upstream, engine, events, instance):
        upstream.version = "1"
        for unit in range(2):
            engine.run(instance, unit, "deployed", [ROW])
            await events.outputs(unit)
        assert "version" not in caplog.text
        upstream.version, checked = "2", upstream.asked + 2  # the unit, and the check's query
        engine.run(instance, 2, "deployed", [ROW])
        await events.outputs(2)
        await asked(upstream, checked)
        assert f"{upstream.url} answers with version 2 of model, before with 1" in caplog.text
        upstream.mode, upstream.version = fake.OTHER, "3"
        engine.run(instance, 3, "deployed", [ROW])
        await events.outputs(3)
        assert "predicts something else" in await events.departure(instance)


@pytest.mark.parametrize(
    ("mode", "fault", "text"),
    [
        (fake.AWAY, "not ready", "says that model 'model' is not ready"),
        (fake.OTHER, "mismatch", "predicts something else with model 'model'"),
    ],
)
async def test_an_upstream_that_is_away_or_wrong_at_the_start_joins_when_it_is_well(
    model: Path, caplog: pytest.LogCaptureFixture, mode: str, fault: str, text: str
) -> None:
    metrics = Metrics()
    async with FakeUpstream("http", WEIGHTS) as here, FakeUpstream("grpc", WEIGHTS) as away:
        away.mode = mode
        engine, events = engine_for(model, here, away, metrics=metrics), Events()
        await engine.start([DEPLOYED] * 2, events)
        try:
            first = await events.arrival()
            assert engine.running() == {first.instance: None}
            while text not in caplog.text:
                await asyncio.sleep(0.01)
            assert away.url in caplog.text
            assert ejections(metrics, away, fault) == 1
            away.mode = fake.WELL
            second = await events.arrival()
            for unit, each in enumerate((first, second)):
                engine.run(each.instance, unit, "deployed", [ROW])
                await events.outputs(unit)
        finally:
            await engine.stop()


@pytest.mark.parametrize("mode", [fake.AWAY, fake.HUNG])
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
        gone |= {"0.0", "1.0", "2.0"} - engine.running().keys()
        assert len(gone) == 1


# Busy


@pytest.mark.parametrize(
    ("wire", "busy", "retry_after", "rest"),
    [
        (V2, 503, None, remote.MIN_REST),
        (V2, 503, "1.5", 1.5),
        (V2, 429, "3600", remote.MAX_REST),
        (V2, 429, "-1", remote.MIN_REST),
        (V2, 503, "soon", remote.MIN_REST),
        (V1, 429, "2.0", 2.0),
        (GRPC, grpc.StatusCode.RESOURCE_EXHAUSTED, None, remote.MIN_REST),
        (GRPC, grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5, 1.5),
        (GRPC, grpc.StatusCode.UNAVAILABLE, 1.5, 1.5),
        (GRPC, grpc.StatusCode.UNAVAILABLE, None, remote.MIN_REST),
    ],
)
async def test_a_busy_upstream_is_left_alone_for_a_while_and_keeps_its_units(
    model: Path, wire: Wire, busy: Any, retry_after: Any, rest: float
) -> None:
    metrics = Metrics()
    async with one(model, **wire, metrics=metrics, concurrency=3) as (upstream, engine, events, _):
        upstream.mode = fake.HELD
        engine.run("0.0", 1, "deployed", [ROW])
        await asked(upstream, 2)
        upstream.mode, upstream.busy, upstream.retry_after = fake.BUSY, busy, retry_after
        engine.run("0.1", 2, "deployed", [ROW])
        first = await events.expect(Failed)
        assert first.detail == "instance 0.1 is busy"
        assert 0 < first.busy <= rest
        if rest > 1:
            # Its other slots take nothing meanwhile, either, and it is not even asked.
            before = upstream.asked
            engine.run("0.2", 3, "deployed", [ROW])
            second = await events.expect(Failed)
            assert 0 < second.busy <= first.busy
            assert upstream.asked == before
        upstream.release.set()
        await events.outputs(1)
        assert events.nothing_more()
        assert engine.running() == {"0.0": None, "0.1": None, "0.2": None}
        assert ejections(metrics, upstream, "not ready") is None


async def test_out_of_descriptors_no_upstream_is_at_fault(model: Path) -> None:
    async with one(model, concurrency=UNITS) as (upstream, engine, events, _):
        upstream.mode = fake.HELD
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            for unit in range(UNITS):
                engine.run(f"0.{unit}", unit, "deployed", [ROW])
            first = await events.expect(Failed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert first.busy > 0
        upstream.mode = fake.WELL
        upstream.release.set()
        rest = [await events.next() for _ in range(UNITS - 1)]
        assert all(isinstance(each, Failed | Finished) for each in rest), rest
        await asyncio.sleep(first.busy)
        engine.run(f"0.{first.unit}", UNITS, "deployed", [ROW])
        await events.outputs(UNITS)


# Cancelled


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_the_call_of_a_cancelled_unit_ends_at_once(model: Path, scheme: str) -> None:
    ours: Wire = {"scheme": scheme, "given": {"software": SOFTWARE}}
    async with one(model, **ours, concurrency=2) as (upstream, engine, events, _):
        upstream.mode = fake.HELD
        before = upstream.asked
        engine.run("0.0", 9, "deployed", [ROW])
        engine.cancel("0.0", 9)  # before it was sent
        await events.expect(Failed)
        engine.run("0.0", 1, "deployed", [ROW])
        engine.run("0.1", 2, "deployed", [ROW])
        await asked(upstream, before + 2)
        engine.cancel("0.0", 99)
        engine.cancel("0.0", 1)
        assert engine.running() == {"0.0": None, "0.1": 2}
        engine.cancel("0.0", 1)
        event = await events.expect(Failed)
        assert (event.unit, event.busy) == (1, 0.0)
        while upstream.abandoned < 1:
            await asyncio.sleep(0.01)
        upstream.mode = fake.WELL
        engine.run("0.0", 3, "deployed", [ROW])
        await events.outputs(3)
        upstream.release.set()
        await events.outputs(2)
        assert (upstream.asked, upstream.abandoned) == (before + 3, 1)
        assert events.nothing_more()


@pytest.mark.parametrize(
    ("wire", "software"), [*((wire, "triton") for wire in WIRES), (GRPC, None)]
)
async def test_other_software_stays_busy(model: Path, wire: Wire, software: str | None) -> None:
    given = {"software": software}
    async with one(model, **wire, given=given) as (upstream, engine, events, instance):
        upstream.mode = fake.HELD
        engine.run(instance, 1, "deployed", [ROW])
        await asked(upstream, upstream.asked + 1)
        engine.cancel(instance, 1)
        assert engine.running() == {instance: 1}
        upstream.release.set()
        await events.outputs(1)
        assert upstream.abandoned == 0


# Recycled


async def test_a_recycled_slot_leaves_with_its_unit_and_comes_back_alone(model: Path) -> None:
    metrics = Metrics()
    async with two(model, concurrency=4, metrics=metrics) as (upstream, engine, events, _):
        upstream.mode = fake.HELD
        engine.run("0.1", 1, "deployed", [ROW])
        engine.run("0.2", 2, "deployed", [ROW])
        await asked(upstream, 3)
        upstream.mode = fake.WELL
        engine.recycle("0.1", "hung")
        engine.recycle("0.1", "hung")
        engine.recycle("1.3", "fails units")
        assert engine.running().keys() == {"0.0", "0.2", "0.3", "1.0", "1.1", "1.2"}
        assert await left(events, 2) == {"0.1", "1.3"}
        assert ejections(metrics, upstream, "recycled") == 1
        assert {(await events.arrival()).instance for _ in range(2)} == {"0.1.1", "1.3.1"}
        assert engine.running()["0.2"] == 2
        upstream.release.set()
        await events.outputs(2)
        assert len(engine.running()) == 8
        assert events.nothing_more()
