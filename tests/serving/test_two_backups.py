"""A bundle with two backups: what the fast one may not answer, the better one does."""

from pathlib import Path

import numpy as np
import pytest

from parity_models.emulation import Constant, FaultPlan, Slowdowns
from parity_models.models.bundle import open_bundle
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions, Server
from served import predictions, queries, write_linear_bundle


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, "single-queue"])
async def test_what_one_backup_may_not_answer_a_better_one_does(
    tmp_path: Path, rule: str | None
) -> None:
    """One of three workers is slow. Nothing is known yet: the stand-ins are asked after half of the
    time that queries have."""
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=2))
    faults = FaultPlan(
        coverages={"backup": 0, "backup-2": 1},
        slowdowns=Slowdowns(0.0, 1000.0, Constant(60.0), workers=(0,)),
    )
    options = ServeOptions(
        policy=PolicyChoice("adaptive", dispatch=rule),
        deadline=4.0,
        instances=3,
        port=0,
        faults=faults,
    )
    async with Server(bundle, options) as server:
        server.deployment.begin_faults()
        for seed in range(20):  # the plan takes a moment to reach the workers
            rows = queries(3, seed)
            answers = await server.deployment.frontend.infer(rows)
            assert set(answers.sources) <= {Source.MODEL, Source.BACKUP_2}
            expected = predictions(rows)
            expected[[source is Source.BACKUP_2 for source in answers.sources]] *= 3
            np.testing.assert_allclose(answers.outputs, expected, rtol=1e-3, atol=1e-5)
            if Source.BACKUP_2 in answers.sources:
                break
        else:
            pytest.fail("no backup was asked")
        for kind, fate in (("backup", "refused"), ("backup-2", "answered")):
            of = {"kind": kind, "fate": fate}
            count = server.deployment.metrics.registry.get_sample_value(
                "parm_redundant_tasks_total", of
            )
            assert count == answers.sources.count(Source.BACKUP_2)
