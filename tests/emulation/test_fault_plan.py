"""Fault plans are read from files, and refused with the reason."""

import json
import re
from pathlib import Path

import pytest

from parity_models.documents import MAX_BYTES
from parity_models.emulation import (
    Constant,
    Exponential,
    FaultPlan,
    Kill,
    Lie,
    LogNormal,
    Neighbours,
    Pauses,
    RandomKills,
    Shuffles,
    Slowdowns,
    Uniform,
    load_fault_plan,
)
from parity_models.errors import FaultPlanError

EVERYTHING = {
    "seed": 7,
    "service_time": {"type": "lognormal", "median": 0.02, "sigma": 0.1},
    "slowdowns": {
        "mean_between": 4.0,
        "mean_length": 1.0,
        "delay": {"type": "uniform", "low": 0.02, "high": 0.06},
        "workers": [0, 2],
    },
    "pauses": {"mean_between": 5.0, "length": {"type": "exponential", "mean": 0.1}},
    "kills": [{"worker": 1, "at": 3.5}],
    "random_kills": {"mean_between": 30.0},
    "shuffles": {
        "transfers": 2,
        "workers": 4,
        "length": {"type": "uniform", "low": 1.0, "high": 2.0},
        "delay": {"type": "constant", "seconds": 0.01},
    },
}


def test_a_plan_is_read_from_a_file_or_given_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(EVERYTHING))
    plan = load_fault_plan(tmp_path / "plan.json")
    assert plan == load_fault_plan(str(tmp_path / "plan.json"))
    assert plan == load_fault_plan(json.dumps(EVERYTHING, indent=1))
    assert plan == FaultPlan(
        seed=7,
        service_time=LogNormal(0.02, 0.1),
        slowdowns=Slowdowns(4.0, 1.0, Uniform(0.02, 0.06), (0, 2)),
        pauses=Pauses(5.0, Exponential(0.1)),
        kills=(Kill(1, 3.5),),
        random_kills=RandomKills(30.0),
        shuffles=Shuffles(2, 4, Uniform(1.0, 2.0), Constant(0.01)),
    )
    assert load_fault_plan("{}") == FaultPlan()


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("{", "it ends too early; is a bracket or a quote not closed?"),
        ('{"a": ' + "[" * 9999, "it is nested too deeply"),
        ('{"sed": 1}', "it has no 'sed'; did you mean seed?"),
        ('{"service_time": 3}', "service_time must be a table of names and values, not 3"),
        ('{"pauses": {"mean_between": 1}}', "pauses needs 'length'"),
        (
            '{"service_time": {"type": "normal", "mean": 1}}',
            "service_time.type is one of constant, uniform, exponential, lognormal, empirical, "
            'not "normal"; did you mean lognormal?',
        ),
        (
            '{"service_time": {"type": "uniform", "low": 2, "high": 1}}',
            "service_time: low (2.0) must not be above high (1.0)",
        ),
        (
            '{"service_times": {"deployed": {"type": "constant", "seconds": 1}, '
            '"backup": {"type": "constant", "seconds": -1}}}',
            "service_times.backup.seconds must be 0 or more, got -1",
        ),
        (
            '{"kills": [{"worker": 1, "at": 1}, {"worker": -1, "at": 1}]}',
            "kills[1].worker must be 0",
        ),
        (
            '{"random_kills": {"mean_between": 0}}',
            "random_kills.mean_between must be 0.001 or more",
        ),
        ('{"coverage": 2}', "coverage must be 1 or less, got 2"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(plan: str, reason: str) -> None:
    with pytest.raises(FaultPlanError, match=re.escape(reason)) as refused:
        load_fault_plan(plan)
    assert str(refused.value).startswith("the fault plan is not a fault plan: ")
    assert str(refused.value).endswith("; see docs/reference/faults.md")


def test_files_that_are_no_plans_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_bytes(b" " * (MAX_BYTES + 1))
    for file, reason in [
        (tmp_path / "none", "cannot read"),
        (tmp_path, "cannot read"),
        (tmp_path / "binary", "is not a fault plan"),
        (tmp_path / "long", "it has more than 1 MiB"),
    ]:
        with pytest.raises(FaultPlanError, match=reason) as error:
            load_fault_plan(str(file))
        assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "plan",
    [
        FaultPlan(kills=(Kill(3, 1.0),)),
        FaultPlan(random_kills=RandomKills(1.0, (0, 3))),
        FaultPlan(lies=(Lie(3, "other.onnx"),)),
        FaultPlan(pauses=Pauses(1.0, Constant(1.0), (3,))),
        FaultPlan(slowdowns=Slowdowns(1.0, 1.0, Constant(1.0), (3, 4))),
        FaultPlan(neighbours=Neighbours(1.0, Constant(0.1), workers=(3,))),
    ],
)
def test_a_plan_for_workers_that_are_not_there_is_refused(plan: FaultPlan) -> None:
    plan.check(5)
    with pytest.raises(FaultPlanError, match="names worker 3, but there are 3"):
        plan.check(3)
