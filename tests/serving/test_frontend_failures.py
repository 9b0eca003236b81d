"""Whatever fails or comes late: the frontend answers every request, and goes on."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.scheduling import DEPLOYED, NoRedundancy, Parity, Policy, Source
from parity_models.scheduling.policies import Pool
from parity_models.serving.errors import (
    InferenceError,
    InternalError,
    PoisonError,
)
from parity_models.serving.in_flight import Observer, Result
from puppet_engine import CODE, WEIGHTS, asked, metric, queries, serving, settle


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


async def test_an_end_that_is_reported_twice_or_too_late_changes_nothing() -> None:
    async with serving(NoRedundancy(), instances=1, parity_instances=0) as (frontend, engine):
        request = await asked(frontend.infer(queries(1)))
        unit = engine.units[0]
        engine.finish(unit)
        engine.listener.unit_finished(unit.id, np.zeros((1, 3), np.float32))
        engine.listener.unit_failed(unit.id, "after all")
        engine.lose("0", "0.1")
        engine.listener.unit_finished(unit.id, np.zeros((1, 3), np.float32))
        engine.listener.instance_left("0", "again")
        assert (await request).sources == [Source.MODEL]


class Faulty(Observer):
    """Raises whatever it is told."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)

        def told(*about: object, **more: object) -> None:
            raise RuntimeError(f"fails when told of {name}")

        return told


async def test_what_watches_the_server_hinders_nobody_when_it_fails() -> None:
    policy = Parity(CODE, Parity.Options(pool=Pool.DEDICATED))
    async with serving(policy) as (frontend, engine):
        frontend.observers.append(Faulty())
        rows = queries(4)
        request = await asked(frontend.infer(rows))
        engine.lose(engine.units[0].instance, "again")
        while engine.units:
            engine.finish(engine.units[-1])
        np.testing.assert_allclose((await request).outputs, rows @ WEIGHTS, rtol=1e-4)
        assert metric(frontend, "parm_observer_errors_total") > 4
        assert metric(frontend, "parm_actions_failed_total") == 0
        assert metric(frontend, "parm_redundant_tasks_total", kind="parity", fate="sent") > 0


async def test_where_the_engine_fails_its_query_gets_an_error_and_the_rest_goes_on() -> None:
    async with serving(NoRedundancy(), 2, 0) as (frontend, engine):
        engine.broken = True
        with pytest.raises(InternalError, match="its log says why"):
            await frontend.infer(queries(1))
        engine.broken = False
        assert engine.log[-1] == ("0", "recycle")
        assert metric(frontend, "parm_actions_failed_total") == 1
        request = await asked(frontend.infer(queries(3)))
        while engine.units:
            engine.finish(engine.units[0])
        assert (await request).sources == [Source.MODEL] * 3


async def test_what_the_engine_has_lost_is_repaired_and_counted() -> None:
    async with serving(NoRedundancy(), 2, 0, repairs=3) as (frontend, engine):
        request = await asked(frontend.infer(queries(2)))
        engine.units.pop(0)  # and nobody is told
        for _ in range(2):
            frontend.check_engine()
        assert metric(frontend, "parm_repairs_total") == 1
        while engine.units:
            engine.finish(engine.units[0])
        assert (await request).sources == [Source.MODEL] * 2
        del engine.roles["1"]
        for _ in range(2):
            frontend.check_engine()
        assert frontend.instances_up() == {DEPLOYED: 1}
        engine.roles["2"] = frozenset({DEPLOYED})
        for _ in range(2):
            frontend.check_engine()
        assert engine.log[-1] == ("2", "recycle")
        assert metric(frontend, "parm_repairs_total") == 3
        for _ in range(3):
            frontend.check_engine()
        assert metric(frontend, "parm_repairs_total") == 3


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
        policy = Parity(CODE, Parity.Options(pool=pool, max_group_wait=0.002))
    # However slow the machine is, nobody is refused for waiting.
    patient: dict[str, Any] = {"max_attempts": 1000, "deadline": 3600.0}
    async with serving(policy, 3, 2, max_batch=max_batch, **patient) as (frontend, engine):
        requests: list[tuple[NDArray[Any], asyncio.Task[Result]]] = []
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
            with suppress(PoisonError):  # by bad luck, three instances were lost while they ran it
                answers = await task
                np.testing.assert_allclose(answers.outputs, rows @ WEIGHTS, atol=1e-4)


@pytest.mark.parametrize(
    "policy", [NoRedundancy, lambda: Parity(CODE, Parity.Options(max_group_wait=0.001))]
)
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


async def test_a_row_that_is_kept_keeps_nothing_else_of_its_request() -> None:
    async with serving(Parity(CODE, Parity.Options(max_group_wait=0.001))) as (frontend, engine):
        alive = []
        for _ in range(3):
            rows = queries(201)
            request = await asked(frontend.infer(rows))
            alive += [weakref.ref(rows)]
            while not request.done():
                for unit in list(engine.units):
                    engine.finish(unit)
                await settle()
            answers = (await request).outputs
            alive += [weakref.ref(answers)]
            np.testing.assert_allclose(answers, rows @ WEIGHTS, atol=1e-4)
            del request, rows, unit, answers
        kept = frontend.in_flight
        assert 0 < len(kept) < 10, "padding for lonely queries, and the group that is open"
        await settle()
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        # Padding is of use still: a lonely query has its group.
        lonely = await asked(frontend.infer(queries(1)))
        await asyncio.sleep(0.01)
        while engine.units:
            engine.finish(engine.units[0])
            await settle()
        assert metric(frontend, "parm_actions_failed_total") == 0
        assert lonely.done()
