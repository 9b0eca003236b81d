"""A plan says which policy and how many instances, and what is nearest where nothing fits."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from commands import Here, assert_refused, succeeded
from linear_bundles import WEIGHTS, linear_bundle
from parity_models import SimulationOptions, UserError
from parity_models.bundle.bundle import Accuracy, Bundle, with_measured
from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.judging import replacement
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.policies import StandIns
from parity_models.simulation.emulation import FaultPlan
from parity_models.sizing.plan import Goal, Planner, plan
from parity_models.sizing.scenario import QUANTILES, USUAL_DOUBTS, Service, service_of
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import Calibration, GateLevel
from present import some

MODEL, STAND_IN = 0.02, 0.002


def known(*, backup: bool = True, doubts: Sequence[float] = USUAL_DOUBTS) -> Service:
    """A model of 20 ms, with a backup of 2 ms."""
    times, stand_ins = {DEPLOYED: MODEL, BACKUP: STAND_IN}, StandIns(None, backup)
    return Service(times, stand_ins, doubts={Source.BACKUP: doubts}, overhead=0.0)


def planner(service: Service | None = None, **goal: Any) -> Planner:
    return Planner(service or known(), Goal(**{"rate": 50.0, "queries": 2000, **goal}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return linear_bundle(tmp_path_factory.mktemp("bundle"), WEIGHTS, backup=WEIGHTS)


def test_of_the_policies_that_fit_the_one_with_the_least_work_is_taken() -> None:
    four = planner(p99=0.1, instances=4).plans()
    plans = {each.policy.name: each for each in reversed(four.plans)}  # hedging: the default
    assert plans.keys() == {"equal-resources", "hedging", "adaptive"}
    assert all(each.instances == 4 for each in four.plans)
    p99 = {name: each.outcome.p99_ms for name, each in plans.items()}
    assert p99["adaptive"] < p99["hedging"] < p99["equal-resources"]
    assert plans["hedging"].outcome.differ == 0
    assert 0 < plans["adaptive"].outcome.differ < 0.002
    assert "--policy adaptive --instances 4" in plans["adaptive"].flags
    fit = [each for each in four.plans if not each.missed]
    assert four.best in fit
    least = min(each.outcome.busy_ms for each in fit)
    assert some(four.best).outcome.busy_ms <= 1.05 * least
    for each in four.plans:
        used = each.outcome.busy_ms / 1e3 * four.rate / each.instances
        assert each.outcome.idle == pytest.approx(1 - used, abs=0.03)


@pytest.mark.slow
def test_as_few_instances_as_will_do_are_found() -> None:
    wanted = planner(known(backup=False), p99=0.1, headroom=0.5)
    fewest = some(wanted.plans().best).instances
    assert fewest >= wanted.least == 2
    if fewest > wanted.least:
        fewer = planner(known(backup=False), p99=0.1, headroom=0.5, instances=fewest - 1).plans()
        assert fewer.best is None


@pytest.mark.slow
def test_the_nearest_plan_is_named_if_none_fits() -> None:
    found = planner(p99=0.0201, instances=4, queries=1000).plans()
    assert found.best is None
    assert found.nearest.missed[0].startswith("p99 ")
    calm = {"p99": 0.2, "headroom": 0.5, "contention": "{}"}
    few = planner(known(backup=False), instances=1, **calm).plans()
    assert few.best is None
    assert "equal-resources fits with 3 instances" in few.advice


def test_a_parity_model_is_planned_with_its_own_time() -> None:
    role = parity_role(0)
    times = {DEPLOYED: MODEL, role: MODEL / 4}
    code = Code(CodeSpec("stack", "separate", 2), (1,), (1,))
    doubts = {Source.RECONSTRUCTION: (1e-4,)}
    quick = Service(times, StandIns(code), doubts=doubts, overhead=0.0)
    (adaptive,) = (
        each for each in planner(quick, instances=6).plans().plans if each.policy.name == "adaptive"
    )
    assert adaptive.outcome.units[role] > 0
    assert adaptive.outcome.differ == pytest.approx(1e-4 * adaptive.outcome.stood_in)


def test_more_answers_that_may_differ_save_more_work() -> None:
    few, many = (
        planner(instances=4, differ=differ, contention="{}").plans().plans[-1]
        for differ in (1e-4, 0.05)
    )
    assert str(many.policy) == "adaptive@differ=0.05"
    assert "--policy adaptive@differ=0.05" in many.flags
    assert few.outcome.differ < 2e-4 < many.outcome.differ < 0.1
    assert few.outcome.stood_in < many.outcome.stood_in
    assert many.outcome.busy_ms < 0.7 * few.outcome.busy_ms


def test_a_stand_in_of_which_nothing_is_known_hardly_answers() -> None:
    unsure = planner(known(doubts=(1.0,)), instances=4).plans().plans[-1]
    assert unsure.policy.name == "adaptive"
    assert unsure.outcome.stood_in == unsure.outcome.differ < 0.002


def test_a_backup_that_is_at_least_as_right_replaces_the_model() -> None:
    accuracy = Accuracy("top-1", 0.899, None, {}, None, 3080, backup_accuracy=0.9218)
    said = some(replacement(accuracy))
    assert said.startswith("Replace your model: the backup has a top-1 of 0.9218 on 3,080")
    assert said.endswith("A difference of up to 0.0150 may be chance.")
    assert replacement(msgspec.structs.replace(accuracy, backup_accuracy=0.89)) is None
    assert replacement(msgspec.structs.replace(accuracy, available_accuracy=1.0)) is None


def test_batches_carry_what_as_many_instances_cannot_one_by_one() -> None:
    alone = known(backup=False)
    batched = replace(alone, max_batch=8, added={DEPLOYED: 0.1})
    assert batched.query == pytest.approx(MODEL * 1.7 / 8)
    few = {"rate": 150.0, "instances": 2, "headroom": 0.1, "contention": '{"seed": 1}'}
    one_by_one, together = (planner(each, **few).plans().plans[0] for each in (alone, batched))
    assert one_by_one.missed
    assert not together.missed
    assert together.outcome.units[DEPLOYED] < 2000
    assert "--max-batch 8" in together.flags
    assert "--max-batch 1" in one_by_one.flags


@pytest.mark.slow
def test_the_command_says_what_to_serve_and_with_what(
    bundle: Bundle, tmp_path: Path, parm_here: Here
) -> None:
    calm, out = tmp_path / "calm.json", tmp_path / "out"
    calm.write_bytes(msgspec.json.encode(FaultPlan()))
    of = ("plan", str(bundle.path), "--contention", str(calm))
    loaded = (*of, "--service-time", "10ms", "--rate", "100", "--instances", "4")
    told = succeeded(parm_here(*loaded, "--p99", "60ms", "--json", str(out), columns=80))
    assert "Take " in told.stdout
    assert f"parm serve {bundle.path} --policy " in told.stdout
    assert "…" not in told.stdout, "the table is cut"
    assert json.loads(out.read_text())["plans"]
    assert_refused(parm_here(*loaded, "--p99", "1ms"), "no plan fits: the nearest is")
    assert_refused(parm_here(*of), "give --rate or --instances")
    calm.write_text("no plan")
    assert_refused(parm_here(*of, "--rate", "9"), str(calm))


def test_a_bundle_s_calibration_says_the_doubts_and_a_level_bars_the_rest(bundle: Bundle) -> None:
    unknown = service_of(bundle, SimulationOptions())
    closed = {Source.BACKUP: 0.0}
    assert (unknown.coverage, unknown.floor) == (closed, {})
    assert unknown.doubts == {Source.BACKUP: (1.0,)}
    level = GateLevel(0.99, 0.0, coverage=0.8, agreement=0.995)
    curve = DoubtCurve((0.0, 1.0, 2.0), (0.5, 0.01, 0.001), 100)
    calibration = Calibration("classes", 0.0, "scores", 1000, 0.05, (level,), curve=curve)
    new = with_measured(bundle, calibration={"backup": calibration})
    found = service_of(new, SimulationOptions())
    assert (found.coverage, found.floor) == ({Source.BACKUP: 0.8}, {})
    (doubts,) = found.doubts.values()
    assert len(doubts) == QUANTILES
    assert list(doubts) == sorted(doubts)
    assert (doubts[0], doubts[-1]) == (0.001, 0.5)
    assert np.median(doubts) == pytest.approx(0.01, rel=0.2)
    assert service_of(new, SimulationOptions(agreement=0.99)).floor == {Source.BACKUP: 0.8}
    assert service_of(new, SimulationOptions(agreement=0.999)).floor == closed
    untried = found.emulate(FaultPlan(), 0.001)
    assert untried.doubts_of[Source.BACKUP][0] >= 0.001, "the audit's factor counts"


def test_numbers_alone_are_enough_and_instances_are_all_of_them() -> None:
    """20 ms, 200 a second, p99 of 50 ms."""
    found = plan(service_time=0.02, rate=200, p99=0.05, queries=1000)
    assert {each.policy.name for each in found.plans} == {"equal-resources", "hedging"}
    assert some(found.best).outcome.p99_ms <= 50
    assert "Take " in str(found)
    with_backup = plan(
        service_time=0.02, backup_time=0.004, rate=200, p99=0.05, queries=1000, instances=10
    )
    assert "adaptive" in {each.policy.name for each in with_backup.plans}
    with pytest.raises(UserError, match="give a bundle, or service_time="):
        plan(rate=200)
    with pytest.raises(UserError, match="plan for a part of the load"):
        planner(rate=1e6).plans()


def test_of_plans_that_differ_by_chance_the_simplest_is_taken() -> None:
    found = planner(known(doubts=(1.0,)), instances=20, p99=1.0, contention="{}").plans()
    assert some(found.best).policy.name == "equal-resources"
    assert "The goal is met without a stand-in." in found.advice
