"""The frontend keeps the right tensors for the scheduler and answers every request once."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import (
    DEPLOYED,
    NoRedundancy,
    Parity,
    Policy,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.policies import Pool, Replication
from parity_models.serving.engine import EngineListener
from parity_models.serving.errors import (
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from parity_models.serving.frontend import Answers, Frontend
from parity_models.serving.metrics import Metrics

WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
OUTPUT = TensorSpec("output", "FP32", (3,))
CODE = Code(CodeSpec("sum", "subtraction", 2), (6,), (3,))


@dataclass
class Unit:
    id: int
    instance: str
    work: str
    rows: Sequence[NDArray[Any]]


class Puppet:
    """An engine whose instances do nothing until the test says so. Every model is linear."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.log: list[tuple[str, str]] = []
        self.stopped = False

    async def start(self, works: Sequence[frozenset[str]], listener: EngineListener) -> None:
        self.listener = listener
        self.works = {str(number): each for number, each in enumerate(works)}
        for instance, each in self.works.items():
            listener.instance_joined(instance, each)

    def run(self, instance: str, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> None:
        self.units.append(Unit(unit, instance, work, rows))
        self.log.append((instance, work))

    def cancel(self, instance: str, unit: int) -> None:
        self.log.append((instance, "cancel"))

    async def stop(self) -> None:
        self.stopped = True

    def finish(self, unit: Unit) -> None:
        self.units.remove(unit)
        self.listener.unit_finished(unit.id, np.stack(unit.rows) @ WEIGHTS)

    def fail(self, unit: Unit, detail: str) -> None:
        self.units.remove(unit)
        self.listener.unit_failed(unit.id, detail)

    def lose(self, instance: str, replacement: str) -> None:
        self.units = [unit for unit in self.units if unit.instance != instance]
        works = self.works[replacement] = self.works.pop(instance)
        self.listener.instance_left(instance, "killed")
        self.listener.instance_joined(replacement, works)


@asynccontextmanager
async def serving(
    policy: Policy, instances: int = 2, parity_instances: int = 1, **config: Any
) -> AsyncIterator[tuple[Frontend, Puppet]]:
    engine = Puppet()
    code = CODE if isinstance(policy, Parity) else None
    frontend = Frontend(engine, policy, SchedulerConfig(**config), OUTPUT, code, Metrics())
    await frontend.start(policy.works(instances, parity_instances))
    yield frontend, engine
    async with asyncio.timeout(10):
        drained = asyncio.create_task(frontend.drain())
        while not drained.done():
            await asyncio.sleep(0)
            for unit in list(engine.units):
                engine.finish(unit)
        await frontend.stop()
    assert engine.stopped


def queries(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)


async def asked(infer: Awaitable[Answers]) -> asyncio.Task[Answers]:
    """The request as a task, after it has reached the scheduler."""
    task = asyncio.ensure_future(infer)
    await asyncio.sleep(0)
    assert isinstance(task, asyncio.Task)
    return task


async def settle(turns: int = 3) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_every_row_is_answered_by_the_model_in_its_place() -> None:
    async with serving(NoRedundancy(), max_batch=2) as (frontend, engine):
        rows = queries(5)
        request = await asked(frontend.infer(rows))
        for pick in (1, 0, 0):
            engine.finish(engine.units[pick])
        answers = await request
        np.testing.assert_allclose(answers.outputs, rows @ WEIGHTS, rtol=1e-5)
        assert answers.outputs.dtype == np.float32
        assert answers.sources == [Source.MODEL] * 5


async def test_rows_reach_the_engine_without_a_copy() -> None:
    async with serving(NoRedundancy()) as (frontend, engine):
        rows = queries(2)
        request = await asked(frontend.infer(rows))
        assert all(np.shares_memory(rows, unit.rows[0]) for unit in engine.units)
        for unit in list(engine.units):
            engine.finish(unit)
        await request


async def test_originals_run_before_their_parity_is_encoded() -> None:
    async with serving(Parity(CODE)) as (frontend, engine):
        await asked(frontend.infer(queries(2)))
        assert [work for _, work in engine.log] == [DEPLOYED, DEPLOYED, "parity-0"]


async def test_a_query_on_a_slow_instance_is_answered_by_its_reconstruction() -> None:
    async with serving(Parity(CODE)) as (frontend, engine):
        rows = queries(2)
        requests = [await asked(frontend.infer(row[None])) for row in rows]
        _, other, parity = engine.units
        engine.finish(other)
        engine.finish(parity)
        slow, fast = await asyncio.gather(*requests)
        assert slow.sources == [Source.RECONSTRUCTION]
        assert fast.sources == [Source.MODEL]
        np.testing.assert_allclose(slow.outputs, rows[:1] @ WEIGHTS, atol=1e-5)
        np.testing.assert_allclose(fast.outputs, rows[1:] @ WEIGHTS, atol=1e-5)


async def test_the_model_s_late_prediction_changes_no_answer() -> None:
    async with serving(Parity(CODE)) as (frontend, engine):
        request = await asked(frontend.infer(queries(2)))
        late, other, parity = engine.units
        engine.finish(other)
        engine.finish(parity)
        answers = await request
        before = answers.outputs.copy()
        engine.finish(late)
        np.testing.assert_array_equal(answers.outputs, before)
        assert answers.sources == [Source.RECONSTRUCTION, Source.MODEL]


async def test_a_lone_query_is_protected_by_those_answered_before_it() -> None:
    async with serving(Parity(CODE, max_group_wait=0.001)) as (frontend, engine):
        first = await asked(frontend.infer(queries(2)))
        for unit in list(engine.units):
            engine.finish(unit)
        await first
        lone = queries(1)
        request = await asked(frontend.infer(lone))
        async with asyncio.timeout(10):
            while len(engine.units) < 2:
                await asyncio.sleep(0.001)
        (parity,) = (unit for unit in engine.units if unit.work != DEPLOYED)
        engine.finish(parity)
        answers = await request
        assert answers.sources == [Source.RECONSTRUCTION]
        np.testing.assert_allclose(answers.outputs, lone @ WEIGHTS, atol=1e-5)


async def test_a_lost_instance_s_query_is_answered_by_another() -> None:
    async with serving(NoRedundancy()) as (frontend, engine):
        rows = queries(1)
        request = await asked(frontend.infer(rows))
        engine.lose(engine.units[0].instance, "0.1")
        engine.finish(engine.units[0])
        np.testing.assert_allclose((await request).outputs, rows @ WEIGHTS, rtol=1e-5)


async def test_a_query_that_fails_everywhere_fails_with_the_last_reason() -> None:
    async with serving(NoRedundancy(), max_attempts=2) as (frontend, engine):
        request = await asked(frontend.infer(queries(1)))
        engine.fail(engine.units[0], "out of memory")
        engine.fail(engine.units[0], "out of memory again")
        with pytest.raises(InferenceError, match="out of memory again"):
            await request


async def test_too_many_queries_are_refused_at_once() -> None:
    async with serving(NoRedundancy(), max_queue=3) as (frontend, _):
        waiting = await asked(frontend.infer(queries(3)))
        with pytest.raises(OverloadedError, match="try again later"):
            await frontend.infer(queries(3))
        assert not waiting.done()


async def test_a_query_fails_at_its_deadline_and_the_shorter_one_counts() -> None:
    async with serving(NoRedundancy(), deadline=0.02) as (frontend, _):
        for timeout in (None, 0.01, 60.0):
            async with asyncio.timeout(10):
                with pytest.raises(DeadlineError, match="no answer within"):
                    await frontend.infer(queries(1), timeout)


async def test_queries_are_taken_between_start_and_drain_only() -> None:
    engine = Puppet()
    frontend = Frontend(engine, NoRedundancy(), SchedulerConfig(), OUTPUT, None, Metrics())
    with pytest.raises(UnavailableError, match="starting"):
        await frontend.infer(queries(1))
    assert not frontend.ready
    await frontend.start([frozenset({DEPLOYED})])
    assert frontend.ready
    request = await asked(frontend.infer(queries(1)))
    drained = asyncio.create_task(frontend.drain())
    await settle()
    assert not frontend.ready
    assert not drained.done()
    with pytest.raises(UnavailableError, match="stopping"):
        await frontend.infer(queries(1))
    engine.finish(engine.units[0])
    assert (await request).sources == [Source.MODEL]
    await drained


async def test_a_frontend_that_is_stopped_undrained_lets_nobody_wait() -> None:
    engine = Puppet()
    frontend = Frontend(engine, NoRedundancy(), SchedulerConfig(), OUTPUT, None, Metrics())
    await frontend.start([frozenset({DEPLOYED})])
    request = await asked(frontend.infer(queries(3)))
    await frontend.stop()
    assert engine.stopped
    with pytest.raises(UnavailableError, match="stopped"):
        await request


async def test_a_server_without_an_instance_of_the_model_is_not_ready() -> None:
    async with serving(NoRedundancy(), instances=1) as (frontend, engine):
        engine.listener.instance_left("0", "killed")
        assert not frontend.ready
        assert frontend.instances_up() == frontend.queue_depths() == {DEPLOYED: 0}
        engine.listener.instance_joined("0.1", frozenset({DEPLOYED}))
        assert frontend.ready


async def test_the_copies_of_a_query_run_on_the_nodes_that_the_engine_names() -> None:
    async with serving(Replication(2), instances=0, parity_instances=0) as (frontend, engine):
        for instance in ("a1", "a2", "b1"):
            engine.listener.instance_joined(instance, frozenset({DEPLOYED}), instance[0])
        request = await asked(frontend.infer(queries(1)))
        assert {unit.instance for unit in engine.units} == {"a1", "b1"}
        engine.finish(engine.units[0])
        await request


async def test_what_would_spoil_other_queries_reconstructions_is_refused() -> None:
    poison = queries(2)
    poison[1, 3] = np.nan
    async with serving(Parity(CODE)) as (frontend, _):
        with pytest.raises(InvalidRequestError, match="not finite"):
            await frontend.infer(poison)
    async with serving(NoRedundancy()) as (frontend, engine):
        request = await asked(frontend.infer(poison))
        for unit in list(engine.units):
            engine.finish(unit)
        assert np.isnan((await request).outputs[1]).all()


async def test_a_request_that_nobody_waits_for_disturbs_no_other() -> None:
    async with serving(Parity(CODE)) as (frontend, engine):
        abandoned = await asked(frontend.infer(queries(1)))
        request = await asked(frontend.infer(queries(1)))
        abandoned.cancel()
        await settle()
        for unit in list(engine.units):
            engine.finish(unit)
        assert (await request).sources == [Source.MODEL]


@pytest.mark.parametrize("policy", [NoRedundancy, lambda: Parity(CODE, max_group_wait=0.001)])
async def test_tensors_are_let_go_of(policy: Callable[[], Policy]) -> None:
    async with serving(policy()) as (frontend, engine):
        alive = []
        for _ in range(20):
            rows = queries(3)
            alive.append(weakref.ref(rows))
            request = await asked(frontend.infer(rows))
            del rows
            while not request.done():
                for unit in list(engine.units):
                    engine.finish(unit)
                await settle()
            del request, unit
        gc.collect()
        kept = sum(ref() is not None for ref in alive)
        assert kept <= 3  # padding for lonely queries, and the group that is open


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3]),
    st.sampled_from([None, *Pool]),
)
def test_whatever_happens_every_request_is_answered_once_and_right(
    seed: int, max_batch: int, pool: Pool | None
) -> None:
    asyncio.run(_chaos(Random(seed), max_batch, pool))


async def _chaos(random: Random, max_batch: int, pool: Pool | None) -> None:
    policy: Policy = NoRedundancy()
    if pool is not None:
        policy = Parity(CODE, pool=pool, max_group_wait=0.002)
    async with serving(policy, 3, 2, max_batch=max_batch, max_attempts=1000) as (frontend, engine):
        requests: list[tuple[NDArray[Any], asyncio.Task[Answers]]] = []
        lives = 0
        while len(requests) < 60 or not all(task.done() for _, task in requests):
            if len(requests) < 60:
                rows = queries(random.randint(1, 4)) + random.random()
                requests.append((rows, await asked(frontend.infer(rows))))
            for unit in random.sample(engine.units, min(len(engine.units), random.randint(0, 3))):
                if unit not in engine.units:
                    continue
                match random.randrange(8):
                    case 0:
                        engine.fail(unit, "bad luck")
                    case 1:
                        lives += 1
                        engine.lose(unit.instance, f"{unit.instance.split('.')[0]}.{lives}")
                    case _:
                        engine.finish(unit)
            await asyncio.sleep(0)
        for rows, task in requests:
            np.testing.assert_allclose((await task).outputs, rows @ WEIGHTS, atol=1e-4)
