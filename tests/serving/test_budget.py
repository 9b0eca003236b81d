"""A server keeps to its budget of answers that may differ, audits it, and lets it be changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linear_bundles import WEIGHTS as LINEAR
from linear_bundles import linear_bundle
from parity_models.bundle.bundle import Bundle, with_measured
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, ApproximateBackup, StandIns
from parity_models.serving.access import Access
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import Calibration, Gate
from parity_models.trust.gates import OutputGate
from puppet_engine import WEIGHTS, asked, metric, queries, serving, settle
from repositories import ADMINISTRATOR, administered
from served import served_here

DOUBT = 0.01
SURE = DoubtCurve((0.0,), (DOUBT,), 1000, ((1000, 10, 10.0),))
CALIBRATION = Calibration("classes", 0.0, "scores", 1000, 0.05, curve=SURE)
UNTRIED = Calibration(
    "classes", 0.0, "scores", 1000, 0.05, curve=DoubtCurve((0.0,), (DOUBT,), 1000)
)
GATE = OutputGate({Source.BACKUP: Gate(CALIBRATION)})


def bundle(folder: Path, calibration: Calibration | None = CALIBRATION) -> Bundle:
    folder.mkdir(exist_ok=True)
    written = linear_bundle(folder, LINEAR, backup=LINEAR)
    return (
        written
        if calibration is None
        else with_measured(written, calibration={"backup": calibration})
    )


async def test_a_stand_in_s_answer_says_its_doubt_and_is_audited() -> None:
    async with serving(ApproximateBackup(), 1, 1, gate=GATE, compare_one_in=1) as (front, engine):
        request = await asked(front.infer(queries(1)))
        engine.finish_all("backup")
        answer = await request
        doubt = answer.doubts[0]
        assert answer.sources == [Source.BACKUP]
        factor = front.stand_ins.judges[Source.BACKUP].factor
        assert doubt == pytest.approx(DOUBT * factor)
        share, most = front.stand_ins.differing()
        assert 0 < share <= most
        assert metric(front, "parm_audited_answers_total", source="backup") == 0
        engine.finish_all(DEPLOYED)  # it runs on, and agrees
        await settle()
        assert metric(front, "parm_audited_answers_total", source="backup") == 1
        assert metric(front, "parm_audited_answers_differed_total", source="backup") == 0
        # The next one is wrong.
        rows = queries(1)
        request = await asked(front.infer(rows))
        (backup,) = (unit for unit in engine.units if unit.role == "backup")
        engine.finish(backup, np.eye(3, dtype=np.float32)[(rows @ WEIGHTS).argmin(axis=1)])
        await request
        engine.finish_all(DEPLOYED)
        assert metric(front, "parm_audited_answers_total", source="backup") == 2
        assert metric(front, "parm_audited_answers_differed_total", source="backup") == 1
        doubts = front.stand_ins.judges[Source.BACKUP].doubts
        assert doubts is not None
        assert doubts.seen == 2
        assert metric(front, "parm_audit_factor", source="backup") == factor


async def test_a_changed_budget_holds_for_the_scheduler_and_the_audit() -> None:
    policy = Adaptive(StandIns(None, True))
    async with serving(policy, 1, gate=GATE) as (front, _):
        assert front.differ == 0.001
        assert front.differing.endswith("budget 0.1 %")
        front.change_budget(0.05)
        assert policy.differ == front.differ == 0.05
        assert metric(front, "parm_differ_budget") == 0.05


@pytest.mark.parametrize(
    ("calibration", "differ", "said"),
    [
        (None, 0.001, "the backup is not calibrated"),
        (None, 1.0, ""),
        (None, 0.0, ""),
        (CALIBRATION, 0.1, ""),
        (UNTRIED, 0.001, "held-out queries could show it"),
        (Calibration("values", 0.1, "none", 1000, 0.05, curve=SURE), 0.001, "how sure it is"),
    ],
)
def test_startup_note_says_what_a_budget_needs(
    tmp_path: Path, calibration: Calibration | None, differ: float, said: str
) -> None:
    deployment = Deployment(bundle(tmp_path, calibration), ServeOptions(differ=differ))
    assert deployment.choice == PolicyChoice("adaptive", {"differ": differ})
    assert not deployment.model.gates, "a budget needs no gate"
    notes = " ".join(deployment.notes)
    assert said in notes if said else not notes


async def test_administrators_change_the_budget(tmp_path: Path) -> None:
    access = Access(admin_tokens=administered(tmp_path)[1])
    url = "/v2/models/model/budget"

    def change(differ: Any) -> dict[str, Any]:
        return {"parameters": {"differ": differ}}

    async with served_here(bundle(tmp_path), access=access, instances=1) as (_, client):
        about = (await client.get("/v2/models/model")).json()
        assert (about["differ"], "gates" in about) == (0.001, False)
        assert (await client.post(url, json=change(0.01))).status_code == 403
        page = {**ADMINISTRATOR, "origin": "http://elsewhere"}
        assert (await client.post(url, json=change(0.01), headers=page)).status_code == 403
        for wrong in (2, -1, "much", None):
            refused = await client.post(url, json=change(wrong), headers=ADMINISTRATOR)
            assert refused.status_code == 400
            assert "differ must be" in refused.json()["error"]
        unknown = {"parameters": {"budget": 1}}
        assert (await client.post(url, json=unknown, headers=ADMINISTRATOR)).status_code == 400
        changed = await client.post(url, json=change(0.01), headers=ADMINISTRATOR)
        assert (changed.status_code, changed.json()) == (200, {"differ": 0.01})
        assert (await client.get("/v2/models/model")).json()["differ"] == 0.01
    fixed: dict[str, Any] = {"access": access, "policy": PolicyChoice("hedging"), "instances": 1}
    async with served_here(bundle(tmp_path / "other"), **fixed) as (_, client):
        refused = await client.post(url, json=change(0.01), headers=ADMINISTRATOR)
        assert refused.status_code == 400
        assert "has no budget of answers that may differ" in refused.json()["error"]
