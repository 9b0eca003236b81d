"""A backup and a parity model in one bundle, where parm protect finds them better together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.models.bundle import InferenceTimes, open_bundle
from parity_models.protection.advice import (
    Protection,
    Simulations,
    advise,
    coverage_of,
    two_backups,
    two_together,
)
from parity_models.protection.finalists import Entry, Finalist, measure
from parity_models.protection.protect import Prepared, prepare, write_protected
from parity_models.protection.scene import Outcome
from parity_models.protection.search_options import SearchOptions
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.deployment import Deployment as ServingPlan
from parity_models.serving.options import ServeOptions
from parity_models.training import Callbacks, Queries, open_teacher
from parity_models.training.candidates import Proposal
from parity_models.training.recipes import Budget
from parity_models.training.teacher import Teacher

pytestmark = pytest.mark.slow

SHAPE = (6,)
INPUTS = np.random.default_rng(0).normal(size=(2000, *SHAPE)).astype(np.float32)
CANDIDATES = (
    Proposal("mlp@0.25", CodeSpec("stack", "separate", 2), 1.0),
    Proposal("linear", None, 0.2),
)
LEVEL = 0.2
TIMES = InferenceTimes(1.0, None, (), 1.5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teacher]:
    folder = tmp_path_factory.mktemp("together")
    weights = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    linear_model(folder / "model.onnx", SHAPE, (4,), 3 * weights)
    with open_teacher(folder / "model.onnx", INPUTS) as teacher:
        yield teacher


@pytest.fixture(scope="module")
def prepared(teacher: Teacher) -> Prepared:
    queries = Queries.of(INPUTS[:1400], calibration=INPUTS[1400:1700], test=INPUTS[1700:])
    return prepare(teacher, queries, SearchOptions(agreement=LEVEL), Callbacks())


@pytest.fixture(scope="module")
def finalists(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[Finalist]:
    """A parity model and a backup that have learned for three seconds each: enough on a busy
    machine, too."""
    folder = tmp_path_factory.mktemp("finalists")
    entries = []
    for candidate in CANDIDATES:
        one = prepared.lesson.candidate(candidate)
        one.fit(Budget(seconds=3.0), folder / f"{candidate.slug}.checkpoint", options={})
        entries.append(Entry(candidate, one.exported(), one))
    deployed = prepared.lesson.teacher.bundle
    return measure(entries, deployed, prepared.measured, LEVEL, [1], folder / "bundles")[1]


def plan(name: str, finalists: Sequence[Finalist], p99: float, extra: float = 0.05) -> Protection:
    outcome = Outcome(1.0, p99, 2 * p99, 1.0, 0.1, 0.0, {}, {}, 1.0, 0.5)
    return Protection(name, tuple(finalists), PolicyChoice("adaptive"), outcome, extra)


def test_the_bundle_holds_both_and_a_server_of_it_runs_and_gates_both(
    prepared: Prepared, finalists: list[Finalist], tmp_path: Path
) -> None:
    write_protected(prepared, finalists, TIMES, tmp_path / "both")
    bundle = open_bundle(tmp_path / "both")
    manifest, (parity, backup) = bundle.manifest, finalists
    assert manifest.code == parity.proposal.code
    assert manifest.backups
    assert (manifest.backups[0].network, manifest.backups[0].slot) == ("linear", False)
    assert manifest.calibration["reconstruction"] == parity.calibration["reconstruction"]
    assert manifest.calibration["backup"] == backup.calibration["backup"]
    assert manifest.inference_times is not None
    assert manifest.inference_times.deployed_batch == 1.5
    assert (manifest.inference_times.parity, *manifest.inference_times.backups) == (
        parity.ms[1],
        backup.ms[1],
    )
    assert None not in (manifest.parity_training, *manifest.backup_trainings, manifest.envelope)
    assert len(manifest.backup_trainings) == 1
    served = ServingPlan(bundle, ServeOptions(agreement=LEVEL))
    assert served.choice.name == "adaptive"
    assert served.roles[0] == {DEPLOYED, BACKUP, parity_role(0)}
    assert served.model.gates.keys() == {"backup", "reconstruction"}


def test_of_a_parity_model_alone_the_slot_is_a_backup_only_if_it_may_answer(
    prepared: Prepared, finalists: list[Finalist], tmp_path: Path
) -> None:
    parity, backup = finalists
    sure = replace(
        parity,
        exported=replace(parity.exported, backup=backup.exported.backup),
        coverage=parity.coverage | {"backup": 0.9},
        calibration=parity.calibration | backup.calibration,
        slot_ms={1: 1.0},
    )
    unsure = replace(sure, coverage=parity.coverage | {"backup": 0.0})
    for one, backups in ((sure, 1), (unsure, 0)):
        bundle = write_protected(prepared, [one], TIMES, tmp_path / str(backups))
        assert len(bundle.manifest.backups) == backups
        assert len(bundle.manifest.calibration) == 1 + backups


def test_they_are_simulated_each_with_its_time_and_its_coverage(
    finalists: list[Finalist],
) -> None:
    parity, backup = finalists
    slow = replace(parity, ms={1: 20.0}, coverage={"reconstruction": 0.9, "backup": 0.5})
    quick = replace(backup, ms={1: 2.0}, coverage={"backup": 0.7})
    assert coverage_of([slow, quick]) == {"reconstruction": 0.9, "backup": 0.7}
    simulations = Simulations(SearchOptions(load=0.3, extra_work=1.0), {1: 25.0}, 0.0, 1)
    (both,) = simulations.with_stand_ins(slow, quick)
    assert both.name == f"{parity.name} + {backup.name}"
    assert both.finalists == (slow, quick)
    (alone,) = simulations.with_stand_ins(slow)
    assert both.p99_ms < simulations.without.p99_ms
    assert both.p99_ms < alone.p99_ms  # which takes ten times as long


def test_the_best_of_each_kind_within_the_work_are_tried_together(
    finalists: list[Finalist],
) -> None:
    parity, backup = finalists
    others = replace(parity, share=0.5), replace(backup, share=0.1)
    plans = [
        plan("parity", [parity], 3.0),
        plan("better parity", [others[0]], 2.0),
        plan("dear parity", [parity], 1.0, extra=0.5),
        plan("backup", [backup], 2.5),
        plan("worse backup", [others[1]], 4.0),
    ]
    assert two_together(plans, SearchOptions(extra_work=0.1)) == (others[0], backup)
    assert two_together(plans[:3], SearchOptions(extra_work=0.1)) == ()


def test_the_two_best_backups_of_the_frontier_are_tried_together(
    finalists: list[Finalist],
) -> None:
    _, backup = finalists

    def one(name: str, share: float, covered: float, p99: float, extra: float = 0.05) -> Protection:
        found = replace(
            backup,
            proposal=msgspec.structs.replace(backup.proposal, network=name),
            share=share,
            coverage={"backup": covered},
        )
        return plan(found.name, [found], p99, extra)

    wishes = SearchOptions(extra_work=0.1)
    fast, good = one("fast", 0.1, 0.6, 2.0), one("good", 0.2, 0.9, 1.8)
    vain, best, dear = (
        one("vain", 0.25, 0.9, 1.7),  # slower than good, and may answer no more
        one("best", 0.5, 0.95, 2.5),
        one("dear", 0.05, 0.99, 1.0, extra=0.5),
    )
    chosen = two_backups([best, good, vain, fast, dear], wishes)
    assert chosen == (*fast.finalists, *good.finalists)
    assert two_backups([good, vain, dear], wishes) == ()
    alone = [fast, good, vain]
    advice = advise(alone, alone, [plan("no redundancy", (), 9.0)], wishes)
    assert advice.together == ()
    advice = advise([good, vain], [good, vain], [plan("no redundancy", (), 9.0)], wishes)
    assert "No two backups were tried together" in advice.together[0]


def test_two_backups_are_written_each_with_its_gate_the_faster_first(
    prepared: Prepared, finalists: list[Finalist], tmp_path: Path
) -> None:
    _, backup = finalists
    slower = replace(backup, ms={1: 2 * backup.ms[1]}, coverage={"backup": 0.9})
    write_protected(prepared, [slower, backup], TIMES, tmp_path / "two")
    bundle = open_bundle(tmp_path / "two")
    manifest = bundle.manifest
    assert manifest.inference_times is not None
    assert manifest.inference_times.backups == (backup.ms[1], slower.ms[1])
    assert manifest.calibration.keys() == {"backup", "backup-2"}
    assert len(manifest.backup_trainings) == 2
    assert manifest.accuracy is not None
    assert len(manifest.accuracy.backup_accuracies) == 2
    served = ServingPlan(bundle, ServeOptions(agreement=LEVEL))
    assert served.roles[0] == {DEPLOYED, "backup", "backup-2"}
    quick = replace(backup, coverage={"backup": 0.5})
    assert coverage_of([quick, slower]) == {"backup": 0.5, "backup-2": 0.9}


def test_two_are_recommended_only_if_they_are_clearly_better_than_one(
    finalists: list[Finalist],
) -> None:
    parity, backup = finalists
    alone = [plan(parity.name, [parity], 3.0), plan(backup.name, [backup], 2.0)]
    without = [plan("no redundancy", (), 9.0)]
    for p99, chosen in ((1.95, (backup,)), (1.5, (parity, backup))):
        plans = [*alone, plan("both", finalists, p99)]
        advice = advise(plans, plans, without, SearchOptions(extra_work=0.1))
        assert advice.plan.finalists == chosen
        told = "Recommended together: " if len(chosen) > 1 else "Recommended: "
        assert advice.sentences[0].startswith(told)
        assert all(each.name in advice.sentences[0] for each in chosen)
        (said,) = advice.together
        assert f"together have a p99 of {p99:.2f} ms" in said
        assert ("two are better" if len(chosen) > 1 else "so that one will do") in said


def test_where_a_plan_without_a_stand_in_does_as_well_that_is_said_first(
    finalists: list[Finalist],
) -> None:
    parity, _ = finalists
    plans, options = [plan(parity.name, [parity], 2.0)], SearchOptions(extra_work=0.1)
    without = plan("no redundancy", (), 9.0)
    for p99, helps in ((3.0, True), (2.05, False), (1.5, False)):
        advice = advise(plans, plans, [without, plan("hedging", (), p99)], options)
        assert advice.helps == helps
        said = "Recommended: " if helps else "No stand-in helps here: hedging does as well"
        assert advice.sentences[0].startswith(said)
