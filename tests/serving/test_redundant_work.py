"""Redundant work is counted by kind and fate."""

from collections.abc import Mapping

from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.policies import (
    ApproximateBackup,
    NoRedundancy,
    Parity,
    Pool,
    Replication,
)
from parity_models.serving.frontend import Frontend
from puppet_engine import CODE, asked, metric, queries, serving, sources

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
