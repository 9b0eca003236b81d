"""A bundle with two backups: what the fast one may not answer, the better one does."""

from pathlib import Path

import numpy as np
import pytest

from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.emulation import Constant, FaultPlan, Slowdowns
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle, with_calibration
from parity_models.models.gate import Calibration, GateLevel
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.deployment import Deployment
from parity_models.serving.server import ServeOptions, Server
from parity_models.trust.gates import choose_gates, ungated
from served import predictions, queries, write_linear_bundle


def calibration(*levels: float) -> Calibration:
    reached = tuple(GateLevel(level, 0.0, 0.8, level) for level in levels)
    return Calibration("classes", 0.0, "scores", 1000, 0.05, reached)


def test_each_of_two_backups_has_a_gate_of_its_own(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    written = linear_bundle(tmp_path, weights, backup=weights, further=[weights])
    held = with_calibration(
        written, {"backup": calibration(0.9, 0.99), "backup-2": calibration(0.9, 0.98)}
    )
    both = {"deployed", "backup", "backup-2"}
    gates = choose_gates(held, both, None)
    assert {source: gate.level.level for source, gate in gates.items()} == {
        Source.BACKUP: 0.99,
        Source.BACKUP_2: 0.98,
    }
    with pytest.raises(UserError, match=r"the backup-2 of .* is not calibrated for an agreement"):
        choose_gates(held, both, 0.99)
    plan = Deployment(held, ServeOptions())
    assert plan.roles[0] == both
    assert plan.model.gates.keys() == {"backup", "backup-2"}
    (note,) = ungated(with_calibration(held, {"backup": calibration(0.9)}), both, None)
    assert "the backup-2 answers without a gate, as it is not calibrated" in note


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
