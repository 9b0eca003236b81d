"""The frontend keeps the right tensors for the scheduler and answers every request once."""

import asyncio
import gc
import time
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

from parity_models.scheduling import (
    DEPLOYED,
    NoRedundancy,
    Parity,
    Policy,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.policies import Pool, Replication
from parity_models.serving.asked import Answers
from parity_models.serving.errors import (
    DeadlineError,
    InferenceError,
    InternalError,
    OverloadedError,
    PoisonError,
    UnavailableError,
)
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from parity_models.serving.poison import Poison
from parity_models.serving.screen import Screen
from puppet_engine import CODE, OUTPUT, WEIGHTS, Puppet, asked, queries, serving, settle


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
        assert [np.shares_memory(rows, unit.rows[0]) for unit in engine.units] == [True] * 2
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
    async with serving(Parity(CODE, Parity.Options(max_group_wait=0.001))) as (frontend, engine):
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
    async with serving(
        Replication(Replication.Options(copies=2)), instances=0, parity_instances=0
    ) as (frontend, engine):
        for instance in ("a1", "a2", "b1"):
            engine.listener.instance_joined(instance, frozenset({DEPLOYED}), instance[0])
        request = await asked(frontend.infer(queries(1)))
        assert {unit.instance for unit in engine.units} == {"a1", "b1"}
        engine.finish(engine.units[0])
        await request


def metric(frontend: Frontend, name: str, **labels: str) -> float:
    return frontend._metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_what_would_spoil_other_queries_reconstructions_is_served_exact(
    value: float,
) -> None:
    spoilt = queries(2)
    spoilt[1, 3] = value
    async with serving(Parity(CODE), instances=3) as (frontend, engine):
        request = await asked(frontend.infer(spoilt))
        assert [work for _, work in engine.log] == [DEPLOYED, DEPLOYED]  # no group, no parity
        for unit in list(engine.units):
            engine.finish(unit)
        answers = await request
        assert answers.sources == [Source.MODEL] * 2
        assert not np.isfinite(answers.outputs[1]).all()
        assert metric(frontend, "parm_queries_unlike_total") == 1


class Positive:
    """An envelope of inputs above 0, and outputs below 100."""

    def unlike(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(~(rows > 0).all(axis=1))

    def impossible(self, outputs: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(~(outputs < 100).all(axis=1))


async def test_queries_unlike_those_that_stand_ins_learned_from_join_no_group() -> None:
    rows = np.abs(queries(3)) + 0.1
    rows[1, 0] = -1e30
    async with serving(Parity(CODE), 4, screen=Screen(Positive())) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        first, unlike, other, parity = engine.units
        np.testing.assert_allclose(parity.rows[0], rows[0] + rows[2])
        for unit in (unlike, other, parity):
            engine.finish(unit)
        assert (await request).sources == [Source.RECONSTRUCTION, Source.MODEL, Source.MODEL]
        engine.finish(first)


async def test_a_reconstruction_beyond_the_model_s_outputs_answers_nobody() -> None:
    rows = np.abs(queries(2)) + 0.1
    async with serving(Parity(CODE), screen=Screen(Positive())) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        late, other, parity = engine.units
        engine.finish(other)
        engine.units.remove(parity)
        engine.listener.unit_finished(parity.id, np.full((1, 3), 1e6, np.float32))
        await settle()
        assert not request.done()
        engine.finish(late)
        assert (await request).sources == [Source.MODEL] * 2
        assert metric(frontend, "parm_stand_in_outputs_impossible_total") == 1


async def test_exact_queries_and_those_of_other_tenants_share_no_group() -> None:
    async with serving(Parity(CODE), 6) as (frontend, engine):
        requests = [
            await asked(frontend.infer(queries(1), exact=True)),
            await asked(frontend.infer(queries(1), tenant="a")),
            await asked(frontend.infer(queries(1), tenant="b")),
            await asked(frontend.infer(queries(1))),
        ]
        assert [work for _, work in engine.log] == [DEPLOYED] * 4
        requests.append(await asked(frontend.infer(queries(1), tenant="a")))
        assert engine.log[-1][1] == "parity-0"
        for unit in list(engine.units):
            engine.finish(unit)
        await asyncio.gather(*requests)


async def test_a_deadline_that_passes_while_a_unit_s_end_is_reported_loses_nothing() -> None:
    async with serving(NoRedundancy(), instances=1, parity_instances=0) as (frontend, engine):
        hurried = await asked(frontend.infer(queries(1), timeout=0.02))
        waiting = await asked(frontend.infer(queries(1)))
        time.sleep(0.03)  # the event loop is busy beyond the deadline
        engine.finish(engine.units[0])
        assert engine.units, "the next query has been given to the instance"
        engine.finish(engine.units[0])
        assert (await waiting).sources == [Source.MODEL]
        await asyncio.gather(hurried, return_exceptions=True)
        assert metric(frontend, "parm_actions_failed_total") == 0


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


async def test_queries_that_are_given_up_leave_the_queue_and_their_units_are_cancelled() -> None:
    async with serving(NoRedundancy(), instances=1, parity_instances=0) as (frontend, engine):
        running = await asked(frontend.infer(queries(1)))
        queued = await asked(frontend.infer(queries(2)))
        for request in (queued, running):
            request.cancel()
        await settle()
        assert frontend.queue_depths() == {DEPLOYED: 0}
        assert engine.log == [("0", DEPLOYED), ("0", "cancel")]
        assert metric(frontend, "parm_query_failures_total", reason="abandoned") == 3


async def test_a_request_one_row_of_which_fails_is_given_up_whole() -> None:
    async with serving(NoRedundancy(), 1, 0, max_attempts=1) as (frontend, engine):
        request = await asked(frontend.infer(queries(5)))
        engine.fail(engine.units[0], "bad luck")
        with pytest.raises(InferenceError):
            await request
        assert frontend.queue_depths() == {DEPLOYED: 0}


async def test_a_thousand_requests_can_fail_at_the_same_moment() -> None:
    async with serving(NoRedundancy(), max_queue=10_000, deadline=0.5) as (frontend, engine):
        requests = [frontend.ask(queries(2)).future for _ in range(2000)]
        time.sleep(0.6)  # the loop is held up until all are late
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(result) for result in results} <= {DeadlineError}
        assert metric(frontend, "parm_actions_failed_total") == 0
        for unit in list(engine.units):
            engine.finish(unit)
        answer = asyncio.ensure_future(frontend.infer(queries(1)))
        await settle()
        for unit in list(engine.units):
            engine.finish(unit)
        assert len((await answer).sources) == 1


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
    async with serving(NoRedundancy(), 2, 0) as (frontend, engine):
        request = await asked(frontend.infer(queries(2)))
        engine.units.pop(0)  # and nobody is told
        for _ in range(2):
            frontend._driver._check()
        assert metric(frontend, "parm_repairs_total") == 1
        while engine.units:
            engine.finish(engine.units[0])
        assert (await request).sources == [Source.MODEL] * 2
        del engine.works["1"]
        for _ in range(2):
            frontend._driver._check()
        assert frontend.instances_up() == {DEPLOYED: 1}
        engine.works["2"] = frozenset({DEPLOYED})
        for _ in range(2):
            frontend._driver._check()
        assert engine.log[-1] == ("2", "recycle")
        assert metric(frontend, "parm_repairs_total") == 3
        for _ in range(3):
            frontend._driver._check()
        assert metric(frontend, "parm_repairs_total") == 3


async def test_an_instance_that_answers_a_golden_query_wrongly_is_replaced() -> None:
    rows = queries(4)
    golden = {DEPLOYED: (rows, rows @ WEIGHTS)}
    async with serving(NoRedundancy(), 2, 0, golden=golden, verify_every=3) as (frontend, engine):
        assert not frontend.ready, "instances are verified before they get queries"
        honest, liar = engine.units
        engine.finish(honest)
        engine.units.remove(liar)
        engine.listener.unit_finished(liar.id, 1.01 * np.stack(liar.rows) @ WEIGHTS)
        assert ("1", "recycle") in engine.log
        assert metric(frontend, "parm_instances_recycled_total", reason="quarantined") == 1
        assert list(frontend.quarantined) == ["1"]
        assert frontend.ready
        for unit in list(engine.units):
            engine.finish(unit)
        assert metric(frontend, "parm_repairs_total") == 0


async def test_only_so_many_liars_are_remembered_by_name() -> None:
    rows = queries(4)
    golden = {DEPLOYED: (rows, rows @ WEIGHTS)}
    async with serving(NoRedundancy(), 1, 0, golden=golden, verify_every=3) as (frontend, engine):
        for _ in range(150):  # a machine whose accelerator is broken for good
            (liar,) = engine.units
            engine.units.remove(liar)
            engine.listener.unit_finished(liar.id, 1.01 * np.stack(liar.rows) @ WEIGHTS)
        assert metric(frontend, "parm_instances_recycled_total", reason="quarantined") == 150
        named = [
            sample.labels["instance"]
            for family in frontend._metrics.registry.collect()
            for sample in family.samples
            if sample.name == "parm_instance_quarantines_total"
        ]
        assert len(named) == 100
        assert set(named) == set(frontend.quarantined)
        engine.finish(engine.units[0])


async def test_a_query_that_ends_instances_is_refused_from_then_on() -> None:
    async with serving(NoRedundancy(), 3, 0, max_attempts=100) as (frontend, engine):
        poisonous = queries(1)
        request = await asked(frontend.infer(poisonous))
        kills = 0
        while not request.done():
            kills += 1
            engine.lose(engine.units[0].instance, f"again-{kills}")
            await settle()
        assert kills <= 3
        for attempt in (request, frontend.infer(poisonous.copy())):
            with pytest.raises(PoisonError):
                await attempt
        assert metric(frontend, "parm_query_failures_total", reason="poison") == 2
        innocent = await asked(frontend.infer(poisonous + 1))
        engine.finish(engine.units[0])
        assert (await innocent).sources == [Source.MODEL]


def test_poison_is_forgotten_after_a_while_and_only_so_much_is_remembered() -> None:
    poison = Poison()
    rows = queries(3)
    poison.remember(rows[1], 0.0)
    with pytest.raises(PoisonError, match="row 1"):
        poison.check(rows, 1.0)
    poison.check(rows[[0, 2]], 1.0)
    poison.check(rows, 601.0)
    assert not poison
    for number in range(1500):
        poison.remember(np.array([number], np.float32), 0.0)
    poison.check(np.array([[0], [400]], np.float32), 1.0)
    with pytest.raises(PoisonError):
        poison.check(np.array([[1499]], np.float32), 1.0)


async def test_a_request_that_nobody_waits_for_disturbs_no_other() -> None:
    async with serving(Parity(CODE)) as (frontend, engine):
        abandoned = await asked(frontend.infer(queries(1)))
        request = await asked(frontend.infer(queries(1)))
        abandoned.cancel()
        await settle()
        for unit in list(engine.units):
            engine.finish(unit)
        assert (await request).sources == [Source.MODEL]


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
            with suppress(PoisonError):  # by bad luck, three instances were lost while they ran it
                answers = await task
                np.testing.assert_allclose(answers.outputs, rows @ WEIGHTS, atol=1e-4)
