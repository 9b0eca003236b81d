"""One command leads from a model and unlabelled queries to a bundle with the best stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commands import invoke
from onnx_models import linear_model, output_of
from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.evaluation.calibration import RISK
from parity_models.models.bundle import open_bundle
from parity_models.models.envelope import Envelope
from parity_models.models.onnx_model import OnnxModel
from parity_models.protection.finalists import (
    Finalist,
    Protection,
    Simulations,
    advise,
    measure,
    preferred,
)
from parity_models.protection.options import Scenario
from parity_models.protection.protect import (
    Prepared,
    SearchOptions,
    prepare,
    protect,
    write_protected,
)
from parity_models.protection.scene import Outcome, standard_contention
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from parity_models.training import Callbacks, Queries, open_teacher
from parity_models.training.candidates import Proposal
from parity_models.training.fit import Budget
from text_models import TextModel, write_text_folder

SHAPE = (6,)
INPUTS = np.random.default_rng(0).normal(size=(3000, *SHAPE)).astype(np.float32)
QUICK = ("--minutes", "0.15", "--agreement", "0.1")
PAIRS = CodeSpec("stack", "separate", 2)
LEVEL = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its queries."""
    made = tmp_path_factory.mktemp("protect")
    weights = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    linear_model(made / "model.onnx", SHAPE, (4,), 3 * weights)
    np.save(made / "inputs.npy", INPUTS)
    return made


def given(folder: Path, *more: str) -> list[str]:
    files = ("--model", str(folder / "model.onnx"), "--inputs", str(folder / "inputs.npy"))
    return ["protect", *files, "--out", str(folder / "bundle"), *QUICK, *more]


@pytest.mark.slow
def test_one_command_finds_a_stand_in_says_what_it_is_worth_and_writes_it(folder: Path) -> None:
    result = invoke(*given(folder, "--json", str(folder / "found.json")))
    assert result.exit_code == 0, result.output
    for said in ("stand-ins found", "simulated", "hedging", "more work", "95 of 100", "logits"):
        assert said in result.output
    bundle = open_bundle(folder / "bundle")
    manifest = bundle.manifest
    assert manifest.backups or manifest.parity
    assert None not in (manifest.calibration, manifest.accuracy, manifest.envelope)
    found = json.loads((folder / "found.json").read_text())
    assert found["plans"][0]["name"] == "no redundancy"
    assert all(each["interval"][0] <= each["agreement"] for each in found["finalists"])
    if manifest.backups:
        backup = OnnxModel(folder / "bundle" / manifest.backups[0].file)
        own = output_of(OnnxModel(bundle.deployed_path), INPUTS).argmax(axis=1)
        same = (output_of(backup, INPUTS).argmax(axis=1) == own).mean()
        measured = [each["agreement"] for each in found["finalists"] if "backup" in each["name"]]
        assert min(abs(same - each) for each in measured) < 0.1
    assert not list((folder / "bundle.protect").glob("*"))
    assert found["advice"]["plan"]["name"] in {each["name"] for each in found["plans"]}


@pytest.mark.slow
def test_a_model_of_named_inputs_is_protected_too(tmp_path: Path) -> None:
    write_text_folder(tmp_path, TextModel())
    found = protect(
        tmp_path / "deployed",
        tmp_path / "inputs.npz",
        out=tmp_path / "protected",
        output="logits",
        minutes=0.2,
        agreement=0.3,
        differ=0.9,
    )
    assert found.plans is not None
    assert found.plans.best is not None
    assert {"adaptive", "cascade"} <= {each.policy.name for each in found.plans.plans}
    assert found.plans.best.flags in found.flags
    assert found.manifest.backups
    assert isinstance(found.envelope(), Envelope)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--contention", "{not a plan"), "fault plan"),
        (("--resume",), "there is nothing to resume"),
        (("--metric", "iou"), "are no boxes"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    folder: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as error:
        invoke(*given(folder, "--out", str(tmp_path / "none"), *more))
    assert message in str(error.value)
    assert not (tmp_path / "none").exists()


# Finalists are written


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Iterator[Prepared]:
    queries = Queries.of(INPUTS[:1400], calibration=INPUTS[1400:1700], test=INPUTS[1700:])
    with open_teacher(folder / "model.onnx", INPUTS) as teacher:
        yield prepare(teacher, queries, SearchOptions(agreement=LEVEL), Callbacks())


@pytest.mark.slow
def test_the_chosen_stand_in_is_written_with_its_gate_and_times_and_served(
    prepared: Prepared, tmp_path: Path
) -> None:
    candidates = [
        prepared.lesson.candidate(Proposal("mlp@0.25", PAIRS, 1.0)),
        prepared.lesson.candidate(Proposal("linear", None, 0.2)),
    ]
    for each in candidates:
        each.fit(Budget(seconds=3.0), tmp_path / f"{each.proposal.slug}.checkpoint", options={})
    deployed = prepared.lesson.teacher.bundle
    queries, folder = prepared.queries, tmp_path / "bundles"
    _, trained = measure(candidates, deployed, queries, "top-1", LEVEL, folder)
    assert queries.calibration is not None
    for chosen, stand_in, role in zip(
        trained, ("reconstruction", "backup"), (parity_role(0), BACKUP), strict=True
    ):
        assert chosen.finalist.covered > 0
        found = chosen.calibrate(queries.calibration, "top-1", LEVEL, RISK)
        assert found is not None
        assert found[0].finalist.covered > 0
        bundle = write_protected(prepared, *found, tmp_path / stand_in)
        manifest = bundle.manifest
        assert manifest.code == chosen.finalist.code
        assert list(manifest.calibration.values()) == [found[1]]
        served = Deployment(bundle, ServeOptions(agreement=LEVEL))
        assert served.choice.name == "adaptive"
        assert served.roles[0] == {DEPLOYED, role}
        assert served.model.gates.keys() == {stand_in}
        # Without enough risk nothing can be shown.
        assert chosen.calibrate(queries.calibration, "top-1", LEVEL, 1e-300) is None


# Simulations and advice


def finalist(
    name: str, *, share: float = 0.2, covered: float = 0.9, coded: bool = False
) -> Finalist:
    code = PAIRS if coded else None
    return Finalist(name, code, 25 * share, share, 0.9, None, covered)


def plan(name: str, p99: float, one: Finalist | None = None) -> Protection:
    outcome = Outcome(1.0, p99, 2 * p99, 1.0, 0.1, 0.0, {}, 1.0, 0.5)
    return Protection(name, one, outcome, 0.05)


def test_of_plans_that_differ_by_chance_the_stand_in_that_saves_most_is_taken() -> None:
    slow = plan("slow", 2.0, finalist("slow", share=0.5))
    for p99, better in ((2.05, "fast"), (2.5, "slow")):
        fast = plan("fast", p99, finalist("fast", share=0.1))
        assert preferred([slow, fast]).name == better


def test_where_a_plan_without_a_stand_in_does_as_well_that_is_said_first() -> None:
    best = plan("backup", 2.0, finalist("backup"))
    without = plan("no redundancy", 9.0)
    for p99, helps in ((3.0, True), (2.05, False), (1.5, False)):
        advice = advise(best, without, plan("hedging", p99))
        assert advice.helps == helps
        said = "Recommended: " if helps else "No stand-in helps here: hedging does as well"
        assert advice.sentences[0].startswith(said)


@pytest.mark.slow
def test_hedging_beats_nothing() -> None:
    simulations = Simulations(Scenario(), 25.0, 0.1, 3000)
    assert simulations.scene.queries == 3000
    assert simulations.scene.rate == pytest.approx(0.5 * 12 / 0.0254, rel=0.05)
    assert simulations.without.extra_work == pytest.approx(0, abs=0.01)
    assert simulations.hedging.p99_ms < simulations.without.p99_ms
    assert 0 < simulations.hedging.extra_work < 0.2
    shuffles = standard_contention(12, 0.025).shuffles
    assert shuffles is not None
    assert shuffles.transfers == 4


@pytest.mark.slow
def test_stand_ins_are_simulated_each_with_its_time_and_its_coverage() -> None:
    simulations = Simulations(Scenario(load=0.3), 25.0, 0.3, 3000)
    found = {
        one.name: simulations.with_stand_in(one)
        for one in (
            finalist("parity", share=0.8, coded=True),
            finalist("quick", share=0.08),
            finalist("unsure", share=0.08, covered=0.05),
        )
    }
    assert found["quick"].p99_ms < found["parity"].p99_ms < simulations.without.p99_ms
    assert found["quick"].p99_ms < found["unsure"].p99_ms
    assert all(each.extra_work <= 0.32 for each in found.values())
