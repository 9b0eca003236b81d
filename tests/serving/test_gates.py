"""Stand-ins answer where they are sure enough, and not at all while they agree too seldom.

Frontends over imagined instances.
"""

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.models.gate import Calibration, GateLevel, confidences
from parity_models.scheduling import Parity, Source
from parity_models.scheduling.policies import ApproximateBackup, Pool
from parity_models.serving.frontend import Frontend
from parity_models.serving.gates import ChosenGate
from puppet_engine import CODE, WEIGHTS, Puppet, asked, metric, queries, serving, settle

ONE_IN = 20
DEDICATED = Parity.Options(pool=Pool.DEDICATED)


def chosen(threshold: float, level: float = 0.99) -> ChosenGate:
    reached = GateLevel(level, threshold, 0.8, level)
    return ChosenGate(Calibration("classes", 0.0, "scores", 1000, 0.05, (reached,)), reached)


def by_confidence(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The rows, the surest first, and a confidence that the first half has."""
    sure = confidences("scores", rows @ WEIGHTS)
    order = np.argsort(-sure)
    return rows[order], float(sure[order[len(rows) // 2 - 1 : len(rows) // 2 + 1]].mean())


async def test_an_unsure_reconstruction_answers_nobody() -> None:
    rows, threshold = by_confidence(queries(4))
    gates = {Source.RECONSTRUCTION: chosen(threshold)}
    async with serving(Parity(CODE, DEDICATED), 4, gates=gates) as (frontend, engine):
        sure = await asked(frontend.infer(rows[[0, 1]]))
        late, other, parity = engine.units
        engine.finish(other)
        engine.finish(parity)
        assert (await sure).sources == [Source.RECONSTRUCTION, Source.MODEL]
        engine.finish(late)
        unsure = await asked(frontend.infer(rows[[3, 0]]))
        late, other, parity = engine.units
        engine.finish(other)
        engine.finish(parity)
        await settle()
        assert not unsure.done()
        engine.finish(late)
        assert (await unsure).sources == [Source.MODEL] * 2
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="gate") == 1
        assert metric(frontend, "parm_gate_agreement", source="reconstruction") == 0.99
        assert metric(frontend, "parm_gate_coverage", source="reconstruction") == 0.8


async def test_an_unsure_backup_answers_nobody() -> None:
    rows, threshold = by_confidence(queries(4))
    gates = {Source.BACKUP: chosen(threshold)}
    async with serving(ApproximateBackup(), 4, 4, gates=gates) as (frontend, engine):
        request = await asked(frontend.infer(rows[[0, 3]]))
        for unit in [unit for unit in engine.units if unit.role == "backup"]:
            engine.finish(unit)
        await settle()
        assert not request.done()
        for unit in [unit for unit in engine.units if unit.role == "deployed"]:
            engine.finish(unit)
        assert (await request).sources == [Source.BACKUP, Source.MODEL]
        assert metric(frontend, "parm_stand_in_answers_compared_total", source="backup") == 0


async def test_a_backup_s_answers_are_compared_with_the_model_s() -> None:
    compared = "parm_stand_in_answers_compared_total"
    async with serving(ApproximateBackup(), 1, 1, compare_one_in=ONE_IN) as (frontend, engine):
        # Both are here: the backup's was refused.
        request = await asked(frontend.infer(queries(1)))
        backup, deployed = sorted(engine.units, key=lambda unit: unit.role)
        engine.units.remove(backup)
        engine.listener.unit_finished(backup.id, np.full((1, 3), np.nan, np.float32))
        engine.finish(deployed)
        await request
        assert metric(frontend, compared, source="backup") == 1
        # The model was first, and now and then the backup runs on.
        for _ in range(2 * ONE_IN):
            request = await asked(frontend.infer(queries(1)))
            backup, deployed = sorted(engine.units, key=lambda unit: unit.role)
            engine.finish(deployed)
            await request
            if engine.log[-1][1] == "cancel":
                engine.fail(backup, "cancelled")
            else:
                engine.finish(backup)
        assert metric(frontend, compared, source="backup") == 3
        assert metric(frontend, "parm_stand_in_answers_disagreed_total", source="backup") == 1


async def compared(
    frontend: Frontend, engine: Puppet, wrong: bool, tenant: str | None = None
) -> None:
    """A group whose predictions are both here before its parity output, which may be wrong."""
    rows = queries(2)
    request = await asked(frontend.infer(rows, tenant=tenant))
    one, other, parity = engine.units
    engine.finish(one)
    engine.finish(other)
    await request
    if wrong:
        engine.units.remove(parity)
        # Whatever is subtracted from it, what is left is of a class that neither query has.
        neither = {0, 1, 2} - set((rows @ WEIGHTS).argmax(axis=1))
        output = 100 * np.eye(3, dtype=np.float32)[[neither.pop()]]
        engine.listener.unit_finished(parity.id, output)
    else:
        engine.finish(parity)


async def sources(frontend: Frontend, engine: Puppet, tenant: str | None = None) -> list[Source]:
    """Those of the answers to a group, one of whose predictions comes after its parity output."""
    request = await asked(frontend.infer(queries(2), tenant=tenant))
    late, other, parity = engine.units
    engine.finish(other)
    engine.finish(parity)
    await settle()
    engine.finish(late)
    return list((await request).sources)


async def test_a_gate_closes_when_answers_disagree_and_opens_when_they_agree_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    gates = {Source.RECONSTRUCTION: chosen(-100.0, level=0.9)}
    parity = Parity(CODE, DEDICATED)
    async with serving(parity, 2, 1, gates=gates, compare_one_in=1) as (frontend, engine):

        def is_open() -> float:
            return metric(frontend, "parm_gate_open", source="reconstruction")

        assert is_open() == 1
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]
        for _ in range(40):
            if is_open():
                await compared(frontend, engine, wrong=True)
        assert not is_open()
        assert "answers nobody until it does again" in caplog.text
        assert frontend.ready
        assert await sources(frontend, engine) == [Source.MODEL] * 2
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="closed") == 1
        for _ in range(100):
            if not is_open():
                await compared(frontend, engine, wrong=False)
        assert is_open()
        assert "answers again" in caplog.text
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]


async def test_a_tenant_whose_queries_disagree_keeps_nobody_from_being_answered_by_stand_ins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    gates = {Source.RECONSTRUCTION: chosen(-100.0, level=0.9)}
    parity = Parity(CODE, DEDICATED)
    by_stand_in = [Source.RECONSTRUCTION, Source.MODEL]
    async with serving(parity, 2, 1, gates=gates, compare_one_in=1) as (frontend, engine):
        for _ in range(40):
            await compared(frontend, engine, wrong=True, tenant="absurd")
            await compared(frontend, engine, wrong=False, tenant="honest")
        assert metric(frontend, "parm_gate_open", source="reconstruction") == 1
        assert metric(frontend, "parm_gate_tenants_shut_out", source="reconstruction") == 1
        assert await sources(frontend, engine, "absurd") == [Source.MODEL] * 2
        assert await sources(frontend, engine, "honest") == by_stand_in
        assert await sources(frontend, engine) == by_stand_in
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="tenant") == 1
        assert "for queries of the tenant 'absurd': it answers none of them" in caplog.text
        for _ in range(100):
            await compared(frontend, engine, wrong=False, tenant="absurd")
        assert metric(frontend, "parm_gate_tenants_shut_out", source="reconstruction") == 0
        assert await sources(frontend, engine, "absurd") == by_stand_in


async def test_a_gate_that_one_tenant_closed_is_said_to_answer_others_still(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    gates = {Source.RECONSTRUCTION: chosen(-100.0, level=0.9)}
    parity = Parity(CODE, DEDICATED)
    async with serving(parity, 2, 1, gates=gates, compare_one_in=1) as (frontend, engine):
        for _ in range(40):
            await compared(frontend, engine, wrong=True, tenant="absurd")
        assert metric(frontend, "parm_gate_open", source="reconstruction") == 0
        assert metric(frontend, "parm_gate_tenants_shut_out", source="reconstruction") == 1
        assert "of the tenant 'absurd' alone" in caplog.text
        assert "others are still answered" in caplog.text
        assert "nobody" not in caplog.text
        assert await sources(frontend, engine, "absurd") == [Source.MODEL] * 2
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="tenant") == 1
        assert metric(frontend, refused, source="reconstruction", reason="closed") == 0


async def test_a_comparison_that_cannot_be_made_keeps_nobody_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Parity(CODE, DEDICATED), 2, 1, compare_one_in=1) as (frontend, engine):
        request = await asked(frontend.infer(queries(2)))
        one, other, parity = engine.units
        engine.finish(one)
        engine.finish(other)
        assert (await request).sources == [Source.MODEL] * 2
        engine.units.remove(parity)
        engine.listener.unit_finished(parity.id, np.zeros((1, 7), np.float32))  # another shape
        assert "could not be compared" in caplog.text
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]
