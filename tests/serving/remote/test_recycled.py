"""An instance that the scheduler recycles leaves alone, unless its upstream fails the check."""

import asyncio
from pathlib import Path

import fake_upstream as fake
from engine_conformance import Failed, Joined, Left
from fake_upstream import FakeUpstream
from parity_models.serving.remote.remote_engine import MAX_FAILURES
from upstream_engines import ROW, WEIGHTS, left, two, using


async def test_a_recycled_slot_leaves_with_its_unit_and_comes_back_alone(model: Path) -> None:
    async with (
        two("http") as (one, other),
        using(model, one, other, concurrency=4) as (engine, events, _),
    ):
        one.mode = fake.HELD
        engine.run("0.1", 1, "deployed", [ROW])
        engine.run("0.2", 2, "deployed", [ROW])
        while one.asked < 3:
            await asyncio.sleep(0.01)
        one.mode = fake.WELL
        engine.recycle("0.1", "hung")
        engine.recycle("1.3", "fails units")
        assert engine.running().keys() == {"0.0", "0.2", "0.3", "1.0", "1.1", "1.2"}
        assert await left(events, 2) == {"0.1", "1.3"}
        assert {(await events.arrival()).instance for _ in range(2)} == {"0.1.1", "1.3.1"}
        assert engine.running()["0.2"] == 2
        one.release.set()
        await events.outputs(2)
        assert len(engine.running()) == 8
        assert events.nothing_more()


async def test_an_upstream_whose_slot_lied_is_ejected_if_it_fails_the_check(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, concurrency=3) as (engine, events, _),
    ):
        upstream.mode = fake.OTHER
        engine.recycle("0.1", "answered wrongly")
        assert await left(events, 3) == {"0.0", "0.1", "0.2"}
        assert engine.running() == {}
        upstream.mode = fake.WELL
        await events.arrival()


async def test_recycled_slots_count_among_those_that_are_out(model: Path) -> None:
    async with (
        two("http") as (one, other),
        using(model, one, other, concurrency=2) as (engine, events, _),
    ):
        one.mode = fake.AWAY
        other.mode = fake.BUSY  # neither passes a check, nor is that held against it
        other.retry_after = 0
        engine.recycle("1.0", "hung")
        assert await left(events, 1) == {"1.0"}
        await asyncio.sleep(0.5)
        assert engine.running().keys() == {"0.0", "0.1", "1.1"}, "one is needed, away or not"
        other.mode = fake.WELL
        gone: set[str] = set()
        back: set[str] = set()
        while len(gone) < 2:
            event = await events.next()
            if isinstance(event, Left):
                gone.add(event.instance)
            elif isinstance(event, Joined):
                back.add(event.instance)
        assert (back, gone) == ({"1.0.1"}, {"0.0", "0.1"})


async def test_a_slot_comes_back_only_when_its_upstream_passes_the_check(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, concurrency=2) as (engine, events, _),
    ):
        upstream.mode = fake.ERROR
        engine.recycle("0.0", "hung")
        assert await left(events, 1) == {"0.0"}
        for unit in range(2 * MAX_FAILURES):
            engine.run("0.1", unit, "deployed", [ROW])
            assert isinstance(await events.next(), Failed)
        await asyncio.sleep(0.5)
        assert engine.running() == {"0.1": None}
        upstream.mode = fake.WELL
        assert (await events.arrival()).instance == "0.0.1"
