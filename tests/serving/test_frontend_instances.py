"""Instances that lie, queries that end instances, and how long instances are busy."""

import numpy as np
import pytest

from parity_models.scheduling import DEPLOYED, NoRedundancy, Source
from parity_models.serving.errors import (
    PoisonError,
)
from parity_models.serving.frontend import PoisonedRows
from puppet_engine import WEIGHTS, asked, metric, queries, serving, settle


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
            for family in frontend.metrics.registry.collect()
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
    poison = PoisonedRows()
    rows = queries(3)
    poison.remember(rows[1], 0.0)
    with pytest.raises(PoisonError, match="row 1"):
        poison.check(rows, 1.0)
    poison.check(rows[[0, 2]], 1.0)
    poison.check(rows, 601.0)
    assert not poison.until
    for number in range(1500):
        poison.remember(np.array([number], np.float32), 0.0)
    poison.check(np.array([[0], [400]], np.float32), 1.0)
    with pytest.raises(PoisonError):
        poison.check(np.array([[1499]], np.float32), 1.0)
