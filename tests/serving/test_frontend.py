"""The frontend keeps the right tensors for the scheduler, answers every request once, and counts
redundant work."""

import asyncio
import gc
import weakref
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models import ApproximateBackup, NoRedundancy, Parity, Policy, Replication
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.policies import Pool
from parity_models.serving.errors import (
    DeadlineError,
    InferenceError,
    InternalError,
    OverloadedError,
    PoisonError,
    UnavailableError,
)
from parity_models.serving.frontend import Frontend, Observer, PoisonedRows
from parity_models.serving.models import Result
from puppet_engine import (
    CODE,
    WEIGHTS,
    Puppet,
    asked,
    frontend_over,
    metric,
    queries,
    serving,
    settle,
    sources,
)


async def test_a_large_request_arrives_in_slices_with_small_ones_between() -> None:
    async with serving(NoRedundancy(), max_batch=2, max_queue=300) as (frontend, engine):
        large = await asked(frontend.infer(queries(200)))
        assert len(frontend.in_flight) < 20
        with pytest.raises(OverloadedError, match=r"19\d queries wait, and at most 300 may"):
            await frontend.infer(queries(150))
        assert metric(frontend, "parm_query_failures_total", reason="overloaded") == 150
        assert frontend.queue_depths()[DEPLOYED] > 190
        small = await asked(frontend.infer(queries(1)))
        finished = 0
        while not small.done():
            engine.finish(engine.units[0])
            finished += 1
            await settle()
        assert finished < 10
        assert not large.done()
        room = frontend.scheduler.max_batch * frontend.scheduler.up(DEPLOYED)
        while not large.done():
            engine.finish(engine.units[0])
            await settle()
            assert frontend.scheduler.waiting <= 1.25 * room
        np.testing.assert_allclose(large.result().outputs, queries(200) @ WEIGHTS, rtol=1e-5)


async def test_a_large_request_fails_at_its_deadline_though_small_ones_leave_it_no_room() -> None:
    async with serving(NoRedundancy(), instances=1, max_batch=1) as (frontend, engine):
        large = await asked(frontend.infer(queries(100), 0.05))
        small = [await asked(frontend.infer(queries(1))) for _ in range(3)]
        while frontend.scheduler.pending > len(small):
            engine.finish(engine.units[0])
            small += [await asked(frontend.infer(queries(1)))]
        async with asyncio.timeout(60):
            with pytest.raises(DeadlineError, match="no answer within"):
                await large
        assert frontend.queue_depths() == {DEPLOYED: len(small) - 1}


async def test_a_row_of_a_large_request_waits_since_the_request_came() -> None:
    """Its slice may have come much later."""
    async with serving(NoRedundancy(), instances=1, max_batch=1) as (frontend, engine):
        large = await asked(frontend.infer(queries(65), 0.3))
        for _ in range(64):
            if not large.done():
                engine.finish(engine.units[0])
                await settle()
        with pytest.raises(DeadlineError, match="no answer within") as raised:
            await large
        assert float(str(raised.value).split()[-2]) >= 0.3


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_large_request_that_ends_early_leaves_nothing_behind(how: str) -> None:
    async with serving(NoRedundancy(), max_attempts=1) as (frontend, engine):
        first, second = [await asked(frontend.infer(queries(100))) for _ in range(2)]
        if how == "cancelled":
            first.cancel()
        else:
            engine.fail(engine.units[0], "broken")
        await settle()
        assert first.done()
        while not second.done():
            engine.finish(engine.units[0])
            await settle()
        assert len(second.result().sources) == 100
        assert frontend.queue_depths()[DEPLOYED] == 0
        assert not frontend.in_flight


async def test_a_query_fails_at_its_deadline_and_the_shorter_one_counts() -> None:
    async with serving(NoRedundancy(), deadline=0.02) as (frontend, _):
        for timeout in (None, 0.01, 60.0):
            async with asyncio.timeout(10):
                with pytest.raises(DeadlineError, match="no answer within"):
                    await frontend.infer(queries(1), timeout)


async def test_queries_are_taken_between_start_and_drain_only() -> None:
    engine = Puppet()
    frontend = frontend_over(engine, NoRedundancy())
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


async def test_a_server_without_an_instance_of_the_model_is_not_ready() -> None:
    async with serving(NoRedundancy(), instances=1) as (frontend, engine):
        engine.leave("0")
        assert not frontend.ready
        assert frontend.instances_up() == frontend.queue_depths() == {DEPLOYED: 0}
        engine.join("0.1", frozenset({DEPLOYED}))
        assert frontend.ready


async def test_the_copies_of_a_query_run_on_the_nodes_that_the_engine_names() -> None:
    async with serving(
        Replication(Replication.Options(copies=2)), instances=0, extra_instances=0
    ) as (frontend, engine):
        for instance in ("a1", "a2", "b1"):
            engine.join(instance, frozenset({DEPLOYED}), instance[0])
        request = await asked(frontend.infer(queries(1)))
        assert {unit.instance for unit in engine.units} == {"a1", "b1"}
        engine.finish(engine.units[0])
        await request


async def test_exact_queries_and_those_of_other_tenants_share_no_group() -> None:
    async with serving(Parity(CODE), 6) as (frontend, engine):
        requests = [
            await asked(frontend.infer(queries(1), exact=True)),
            await asked(frontend.infer(queries(1), tenant="a")),
            await asked(frontend.infer(queries(1), tenant="b")),
            await asked(frontend.infer(queries(1))),
        ]
        assert [role for _, role in engine.log] == [DEPLOYED] * 4
        requests.append(await asked(frontend.infer(queries(1), tenant="a")))
        assert engine.log[-1][1] == "parity-0"
        engine.finish_all()
        await asyncio.gather(*requests)


async def test_queries_that_are_given_up_leave_the_queue_and_their_units_are_cancelled() -> None:
    async with serving(NoRedundancy(), instances=1, extra_instances=0) as (frontend, engine):
        running = await asked(frontend.infer(queries(1)))
        queued = await asked(frontend.infer(queries(2)))
        for request in (queued, running):
            request.cancel()
        await settle()
        assert frontend.queue_depths() == {DEPLOYED: 0}
        assert engine.log == [("0", DEPLOYED), ("0", "cancel")]
        assert metric(frontend, "parm_query_failures_total", reason="abandoned") == 3


async def test_an_end_that_is_reported_twice_or_too_late_changes_nothing() -> None:
    async with serving(NoRedundancy(), instances=1, extra_instances=0) as (frontend, engine):
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


async def test_a_failing_observer_affects_no_query() -> None:
    policy = Parity(CODE, Parity.Options(pool=Pool.DEDICATED))
    async with serving(policy) as (frontend, engine):
        frontend.observers.append(Faulty())
        rows = queries(4)
        request = await asked(frontend.infer(rows))
        engine.lose(engine.units[0].instance, "again")
        while engine.units:
            engine.finish(engine.units[-1])
        np.testing.assert_allclose((await request).outputs, rows @ WEIGHTS, rtol=1e-4)
        assert metric(frontend, "parm_actions_failed_total") == 0
        assert metric(frontend, "parm_redundant_tasks_total", kind="parity", fate="sent") > 0


async def test_engine_error_fails_its_query_alone() -> None:
    async with serving(NoRedundancy(), 2, 0) as (frontend, engine):
        engine.broken = True
        with pytest.raises(InternalError, match="its log says why"):
            await frontend.infer(queries(1))
        engine.broken = False
        assert engine.log[-1] == ("0", "recycle")
        assert metric(frontend, "parm_actions_failed_total") == 1
        request = await asked(frontend.infer(queries(3)))
        engine.finish_all()
        assert (await request).sources == [Source.MODEL] * 3


async def test_failing_model_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(NoRedundancy(), 2, 0) as (frontend, engine):
        for _ in range(3):
            request = await asked(frontend.infer(queries(1)))
            while engine.units:
                engine.listener.unit_failed(engine.units.pop(0).id, "no such row")
                await asyncio.sleep(0)
            with pytest.raises(InferenceError, match="no such row"):
                await request
    said = [each.message for each in caplog.records if "in the model" in each.message]
    assert [each.split()[0] for each in said] == ["1", "2"]
    assert "no such row" in said[0]


async def test_lost_unit_is_repaired_and_counted() -> None:
    def check() -> float:
        """Check three times, and return the number of repairs; the second check repairs."""
        for _ in range(3):
            frontend.check_engine()
        return metric(frontend, "parm_repairs_total")

    async with serving(NoRedundancy(), 2, 0, repairs=3) as (frontend, engine):
        request = await asked(frontend.infer(queries(2)))
        lost = engine.units.pop(0).instance  # and nobody is told
        assert check() == 1
        assert (lost, "recycle") in engine.log
        engine.finish_all()
        assert (await request).sources == [Source.MODEL] * 2
        del engine.roles["1"]
        assert check() == 2
        assert frontend.instances_up() == {DEPLOYED: 1}
        engine.roles["2"] = frozenset({DEPLOYED})
        assert check() == 3
        assert engine.log[-1] == ("2", "recycle")
        assert check() == 3


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([None, *Pool]))
async def test_in_any_history_all_are_answered_once(
    seed: int, max_batch: int, pool: Pool | None
) -> None:
    random = Random(seed)
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


async def test_a_row_that_is_kept_keeps_nothing_else_of_its_request() -> None:
    async with serving(Parity(CODE, Parity.Options(max_group_wait=0.001))) as (frontend, engine):
        alive = []
        for _ in range(3):
            rows = queries(201)
            request = await asked(frontend.infer(rows))
            alive += [weakref.ref(rows)]
            while not request.done():
                engine.finish_all()
                await settle()
            answers = (await request).outputs
            alive += [weakref.ref(answers)]
            np.testing.assert_allclose(answers, rows @ WEIGHTS, atol=1e-4)
            del request, rows, answers
        kept = frontend.in_flight
        assert 0 < len(kept) < 10, "padding for lonely queries, and the group that is open"
        await settle()
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        # Padding is of use still: a lonely query has its group.
        lonely = await asked(frontend.infer(queries(1)))
        await asyncio.sleep(0.01)
        while engine.units:
            engine.finish_all()
            await settle()
        assert metric(frontend, "parm_actions_failed_total") == 0
        assert lonely.done()


async def test_an_instance_that_answers_a_golden_query_wrongly_is_replaced() -> None:
    rows = queries(4)
    golden = {DEPLOYED: (rows, rows @ WEIGHTS)}
    async with serving(NoRedundancy(), 2, 0, golden=golden, verify_every=3) as (frontend, engine):
        assert not frontend.ready, "instances are verified before they get queries"
        honest, liar = engine.units
        engine.finish(honest)
        engine.finish(liar, 1.01 * np.stack(liar.rows) @ WEIGHTS)
        assert ("1", "recycle") in engine.log
        assert metric(frontend, "parm_instances_recycled_total", reason="quarantined") == 1
        assert list(frontend.quarantined) == ["1"]
        assert frontend.ready
        while engine.units:  # what takes its place answers all golden queries
            engine.finish(engine.units[0])
        assert metric(frontend, "parm_repairs_total") == 0


async def test_an_instance_that_is_wrong_on_clients_queries_alone_is_replaced() -> None:
    rows = queries(4)
    golden = {DEPLOYED: (rows, rows @ WEIGHTS)}
    async with serving(NoRedundancy(), 4, 0, golden=golden, verify_every=1000, sample_every=10) as (
        frontend,
        engine,
    ):

        def go_on() -> None:
            while engine.units:
                unit = engine.units[0]
                outputs = np.stack(unit.rows) @ WEIGHTS
                if unit.instance[0] == "3" and not any((row == rows).all() for row in unit.rows):
                    outputs = outputs + (np.abs(rows - unit.rows[0]).min() > 0)
                engine.finish(unit, outputs)

        go_on()
        wrong = 0
        for _ in range(200):
            asked_for = queries(1)
            request = await asked(frontend.infer(asked_for))
            go_on()
            result = await request
            wrong += not np.allclose(result.outputs, asked_for @ WEIGHTS)
        assert wrong < 10
        assert "3" in frontend.quarantined
        assert {name[0] for name in frontend.quarantined} == {"3"}


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
    poison = PoisonedRows()
    rows = queries(3)
    poison.remember(rows[1], 0.0)
    assert poison.find(rows, 1.0) == 1
    assert poison.find(rows[[0, 2]], 1.0) is None
    assert poison.find(rows, 601.0) is None
    assert not poison.until
    for number in range(1500):
        poison.remember(np.array([number], np.float32), 0.0)
    assert poison.find(np.array([[0], [400], [1499]], np.float32), 1.0) == 2


# Redundant work is counted by kind and fate


FATES = ("sent", "answered", "cancelled")


def counted(frontend: Frontend, kind: str) -> Mapping[str, float]:
    """Return the counts that are not 0, by fate."""
    of = {
        fate: metric(frontend, "parm_redundant_tasks_total", kind=kind, fate=fate) for fate in FATES
    }
    return {fate: value for fate, value in of.items() if value}


async def test_a_copy_answers_if_it_is_first_else_it_is_cancelled() -> None:
    policy = Replication(Replication.Options(copies=2))
    async with serving(policy, extra_instances=0) as (frontend, engine):
        for first in (1, 0):
            request = await asked(frontend.infer(queries(1)))
            units = list(engine.units)
            engine.finish(units[first])
            await request
            engine.finish(units[1 - first])
        assert counted(frontend, "copy") == {"sent": 2, "answered": 1, "cancelled": 1}


async def test_a_query_that_is_run_again_as_its_unit_failed_is_no_copy() -> None:
    async with serving(NoRedundancy(), 2, 0) as (frontend, engine):
        request = await asked(frontend.infer(queries(1)))
        engine.fail(engine.units[0], "bad luck")
        engine.finish_all()
        await request
        assert counted(frontend, "copy") == {}


async def test_a_backup_answers_or_is_cancelled() -> None:
    async with serving(ApproximateBackup(), 1, 1) as (frontend, engine):
        for role in ("backup", DEPLOYED):
            request = await asked(frontend.infer(queries(1)))
            engine.finish_all(role)
            await request
            engine.finish_all()
        assert counted(frontend, "backup") == {"sent": 2, "answered": 1, "cancelled": 1}


async def test_a_parity_query_answers_those_that_it_reconstructs() -> None:
    policy = Parity(CODE, Parity.Options(pool=Pool.DEDICATED))
    async with serving(policy, 2, 1) as (frontend, engine):
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]
        assert counted(frontend, "parity") == {"sent": 1, "answered": 1}
        assert counted(frontend, "copy") == {}
