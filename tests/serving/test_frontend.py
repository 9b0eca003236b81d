"""The frontend keeps the right tensors for the scheduler and answers every request once."""

import asyncio

import numpy as np
import pytest

from parity_models.scheduling import DEPLOYED, NoRedundancy, Parity, SchedulerConfig, Source
from parity_models.scheduling.policies import Replication
from parity_models.serving.errors import (
    DeadlineError,
    InferenceError,
    OverloadedError,
    UnavailableError,
)
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from puppet_engine import CODE, SIGNATURE, WEIGHTS, Puppet, asked, metric, queries, serving, settle


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
    frontend = Frontend(engine, NoRedundancy(), SchedulerConfig(), SIGNATURE, None, Metrics())
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
        Replication(Replication.Options(copies=2)), instances=0, parity_instances=0
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
        for unit in list(engine.units):
            engine.finish(unit)
        await asyncio.gather(*requests)


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
