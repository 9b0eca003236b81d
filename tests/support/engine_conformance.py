"""Tests that every engine must pass: EngineConformance.

A test file of an engine has a subclass whose fixture `fleet` makes, kills and mends its instances.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.serving.engine import Engine

DEPLOYED = frozenset({"deployed"})
BOTH = frozenset({"deployed", "parity-0"})
ROLE_SETS = [DEPLOYED, BOTH]
SLOW = 2e6
"""Steps of the moody model that take long, but end."""


@dataclass(frozen=True)
class Joined:
    instance: str
    roles: frozenset[str]
    node: str | None = None


@dataclass(frozen=True)
class Left:
    instance: str
    why: str


@dataclass(frozen=True)
class Finished:
    unit: int
    outputs: NDArray[Any]
    ended: float | None = None


@dataclass(frozen=True)
class Failed:
    unit: int
    detail: str
    busy: float = 0.0


Event = Joined | Left | Finished | Failed
Kind = TypeVar("Kind", Joined, Left, Finished, Failed)


class Events:
    """A listener that keeps events until a test asks for them."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        self._queue.put_nowait(Joined(instance, roles, node))

    def instance_left(self, instance: str, why: str) -> None:
        self._queue.put_nowait(Left(instance, why))

    def unit_finished(
        self, unit: int, outputs: NDArray[Any], *, ended: float | None = None
    ) -> None:
        self._queue.put_nowait(Finished(unit, outputs, ended))

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        self._queue.put_nowait(Failed(unit, detail, busy))

    def headers_of(self, unit: int) -> Mapping[str, str]:
        return {"x-request-id": f"of-{unit}"}

    async def next(self) -> Event:
        return await self._queue.get()

    async def expect(self, kind: type[Kind]) -> Kind:
        event = await self._queue.get()
        assert isinstance(event, kind), event
        return event

    async def outputs(self, unit: int) -> NDArray[Any]:
        event = await self.expect(Finished)
        assert event.unit == unit
        return event.outputs

    async def failure(self, unit: int) -> str:
        event = await self.expect(Failed)
        assert event.unit == unit
        return event.detail

    async def arrival(self) -> Joined:
        return await self.expect(Joined)

    async def departure(self, instance: str) -> str:
        event = await self.expect(Left)
        assert event.instance == instance
        return event.why

    def nothing_more(self) -> bool:
        return self._queue.empty()


class Fleet:
    """Engines that run the moody model as deployed and as parity-0, on instances for ROLE_SETS.

    `failure` is in what they say of a unit that the model does not run.
    """

    failure = "idx=3 must be within"

    def engine(self) -> Engine:
        """A new one, not started."""
        raise NotImplementedError

    def kill(self, engine: Engine, number: int) -> None:
        """Kill what runs the instance for ROLE_SETS[number]."""
        raise NotImplementedError

    def mend(self) -> None:
        """Bring back what was killed, where the engine does not do so itself."""


def row(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@asynccontextmanager
async def started(fleet: Fleet) -> AsyncIterator[tuple[Engine, Events, str, str]]:
    """A started engine, its events, and its instances for ROLE_SETS."""
    engine, events = fleet.engine(), Events()
    await engine.start(ROLE_SETS, events)
    try:
        joined = [await events.arrival() for _ in ROLE_SETS]
        instance = {each.roles: each.instance for each in joined}
        yield engine, events, instance[DEPLOYED], instance[BOTH]
    finally:
        await engine.stop()


class EngineConformance:
    async def test_every_row_of_a_batch_gets_its_output(self, fleet: Fleet) -> None:
        rows = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
        rows[:, 0] = 0
        async with started(fleet) as (engine, events, first, second):
            unit = 0
            for instance, role in [(first, "deployed"), (second, "deployed"), (second, "parity-0")]:
                for size in (1, 3, 8, 2, 1):
                    unit += 1
                    engine.run(instance, unit, role, list(rows[:size]))
                    outputs = await events.outputs(unit)
                    assert outputs.dtype == np.float32
                    np.testing.assert_array_equal(outputs, rows[:size])
            assert events.nothing_more()

    async def test_a_row_need_not_lie_in_one_piece(self, fleet: Fleet) -> None:
        columns = np.array([[0, 0], [5, 6]], np.float32)
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [columns[:, 0], columns[:, 1]])
            np.testing.assert_array_equal(await events.outputs(1), columns.T)

    async def test_a_slow_unit_holds_up_no_other_instance(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, second):
            engine.run(first, 1, "deployed", [row(0, SLOW)])
            for unit in range(2, 5):
                engine.run(second, unit, "parity-0", [row(0, unit)])
                np.testing.assert_array_equal(await events.outputs(unit), [[0, unit]])
            np.testing.assert_array_equal(await events.outputs(1), [[0, SLOW]])

    async def test_an_instance_takes_one_unit_at_a_time(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [row(0, SLOW)])
            with pytest.raises(ValueError, match="still has unit 1"):
                engine.run(first, 2, "deployed", [row(0, 5)])
            await events.outputs(1)
            engine.run(first, 3, "deployed", [row(0, 5)])
            await events.outputs(3)

    async def test_an_instance_is_free_by_the_time_its_unit_is_reported(self, fleet: Fleet) -> None:
        class Busy(Events):
            def unit_finished(self, unit: int, outputs: NDArray[Any], **at: float | None) -> None:
                super().unit_finished(unit, outputs, **at)
                if unit < 5:
                    engine.run(first, unit + 1, "deployed", [row(0, unit)])

        engine, events = fleet.engine(), Busy()
        await engine.start(ROLE_SETS, events)
        try:
            joined = [await events.arrival() for _ in ROLE_SETS]
            (first,) = (each.instance for each in joined if each.roles == DEPLOYED)
            engine.run(first, 1, "deployed", [row(0, 0)])
            for unit in range(1, 6):
                await events.outputs(unit)
        finally:
            await engine.stop()

    async def test_a_unit_that_fails_affects_no_other(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [row(0, 0), row(3, 0)])
            assert fleet.failure in await events.failure(1)
            engine.run(first, 2, "deployed", [row(0, 7)])
            np.testing.assert_array_equal(await events.outputs(2), [[0, 7]])

    async def test_a_role_that_the_instance_does_not_run_fails_the_unit(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "parity-0", [row(0, 0)])
            assert f"instance {first} does not run parity-0" in await events.failure(1)
            engine.run(first, 2, "deployed", [row(0, 7)])
            await events.outputs(2)

    async def test_a_cancelled_unit_is_still_reported(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [row(0, SLOW)])
            engine.cancel(first, 1)
            event = await events.next()
            assert isinstance(event, Finished | Failed)
            assert event.unit == 1
            engine.run(first, 2, "deployed", [row(0, 5)])
            assert (await events.outputs(2)).shape == (1, 2)

    async def test_a_cancellation_that_comes_too_late_does_nothing(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [row(0, 5)])
            await events.outputs(1)
            engine.cancel(first, 1)
            engine.cancel("no such instance", 1)
            engine.run(first, 2, "deployed", [row(0, 5)])
            assert (await events.outputs(2)).shape == (1, 2)

    async def test_a_killed_instance_leaves_with_its_unit_and_is_back(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, second):
            engine.run(second, 1, "deployed", [row(0, SLOW)])
            fleet.kill(engine, 1)
            assert await events.departure(second)
            engine.run(second, 2, "deployed", [row(0, 5)])  # nothing is heard of it
            engine.run(first, 3, "deployed", [row(0, 5)])
            await events.outputs(3)
            fleet.mend()
            joined = await events.arrival()
            assert joined.roles == BOTH
            assert joined.instance not in (first, second)
            engine.run(joined.instance, 4, "parity-0", [row(0, 5)])
            assert (await events.outputs(4)).shape == (1, 2)

    async def test_a_recycled_instance_leaves_and_another_comes(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, second):
            engine.run(second, 1, "deployed", [row(0, SLOW)])
            engine.recycle("no such instance", "it is not there")
            engine.recycle(second, "answered wrongly")
            assert "answered wrongly" in await events.departure(second)
            assert second not in engine.running()
            engine.recycle(second, "answered wrongly")
            engine.run(second, 2, "deployed", [row(0, 5)])  # nothing is heard of it
            engine.run(first, 3, "deployed", [row(0, 5)])
            either = [await events.next(), await events.next()]  # in the order of a race
            finished, joined = sorted(either, key=lambda event: isinstance(event, Joined))
            assert isinstance(finished, Finished)
            assert isinstance(joined, Joined)
            assert (finished.unit, joined.roles) == (3, BOTH)
            assert joined.instance not in (first, second)
            engine.run(joined.instance, 4, "parity-0", [row(0, 5)])
            assert (await events.outputs(4)).shape == (1, 2)
            assert events.nothing_more()

    async def test_an_engine_says_which_units_its_instances_have(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, second):
            assert engine.running() == {first: None, second: None}
            engine.run(first, 1, "deployed", [row(0, SLOW)])
            assert engine.running() == {first: 1, second: None}
            await events.outputs(1)
            assert engine.running() == {first: None, second: None}
            engine.run(first, 2, "deployed", [row(3, 0)])
            await events.failure(2)
            assert engine.running() == {first: None, second: None}

    async def test_outputs_are_within_the_tolerance(self, fleet: Fleet) -> None:
        rows = np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32)
        rows[:, 0] = 0
        async with started(fleet) as (engine, events, first, _):
            assert 0 < engine.tolerance < 0.2
            engine.run(first, 1, "deployed", list(rows))
            off = np.abs(await events.outputs(1) - rows).max()
            assert off <= engine.tolerance * np.abs(rows).max()

    async def test_stop_ends_units_and_nothing_more_is_reported(self, fleet: Fleet) -> None:
        async with started(fleet) as (engine, events, first, _):
            engine.run(first, 1, "deployed", [row(0, SLOW)])
            await engine.stop()
            assert events.nothing_more()
            await asyncio.sleep(0.05)
            assert events.nothing_more()
            await engine.stop()

    async def test_a_start_can_be_cancelled(self, fleet: Fleet) -> None:
        start = asyncio.create_task(fleet.engine().start(ROLE_SETS, Events()))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
