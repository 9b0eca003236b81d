"""One command leads from a model and unlabelled queries to a bundle with the best stand-in."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from commands import invoke
from onnx_models import linear_model, output_of
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.protection.advice import Protection, Simulations, advise
from parity_models.protection.protect import Protected, protect
from parity_models.protection.scene import Outcome, standard_contention
from parity_models.protection.search_options import SearchOptions
from parity_models.scheduling.choice import PolicyChoice
from parity_models.training import Callbacks
from parity_models.training.callbacks import Searching

SHAPE = (6,)
INPUTS = np.random.default_rng(0).normal(size=(3000, *SHAPE)).astype(np.float32)
QUICK = ("--minutes", "0.15", "--agreement", "0.1", "--extra-work", "1")


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
    assert manifest.backups
    assert manifest.calibration
    assert manifest.accuracy is not None
    assert manifest.envelope is not None
    found = json.loads((folder / "found.json").read_text())
    assert found["plans"][0]["name"] == "no redundancy"
    assert all(each["interval"][0] <= each["agreement"] for each in found["finalists"])
    model, backup = (
        OnnxModel(each)
        for each in (bundle.deployed_path, folder / "bundle" / manifest.backups[0].file)
    )
    same = output_of(model, INPUTS).argmax(axis=1) == output_of(backup, INPUTS).argmax(axis=1)
    measured = [each["agreement"] for each in found["finalists"] if "backup" in each["name"]]
    assert min(abs(same.mean() - each) for each in measured) < 0.1
    assert not list((folder / "bundle.protect").glob("*"))
    assert found["recommended"] in {each["name"] for each in found["plans"]}


def searched(
    folder: Path, out: str, interrupt: int | None, *, resume: bool = False
) -> tuple[Protected, list[Searching]]:
    """A search that Ctrl-C ends in this rung."""
    seen: list[Searching] = []

    def watch(searching: Searching) -> None:
        seen.append(searching)
        if interrupt is not None and searching.rung == interrupt:
            signal.raise_signal(signal.SIGINT)

    found = protect(
        folder / "model.onnx",
        INPUTS,
        out=folder / out,
        callbacks=Callbacks(on_search=watch),
        minutes=0.2,
        agreement=0.05,
        extra_work=1.0,
        resume=resume,
    )
    return found, seen


@pytest.mark.slow
def test_ctrl_c_writes_the_best_so_far_and_the_search_can_be_resumed(folder: Path) -> None:
    found, _ = searched(folder, "cut", 1)
    assert found.report.interrupted
    assert open_bundle(folder / "cut").manifest.calibration
    assert (folder / "cut.protect" / "search.json").exists()
    again, seen = searched(folder, "cut", None, resume=True)
    assert not again.report.interrupted
    assert seen[0].rung == 1  # what was done is not done again
    assert not (folder / "cut.protect" / "search.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--contention", "{not a plan"), "fault plan"),
        (("--contention", "missing.json"), "cannot read missing.json"),
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


def test_too_few_queries_are_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", INPUTS[:40])
    with pytest.raises(
        UserError, match=r"there are 40 inputs in .*few\.npy, too few: give 100 or more"
    ):
        invoke(*given(folder, "--inputs", str(tmp_path / "few.npy"), "--out", str(tmp_path / "b")))
    assert not (tmp_path / "b").exists()


def plan(name: str, p99: float, extra: float) -> Protection:
    outcome = Outcome(1.0, p99, p99, 1.0, 0.0, 0.0, {}, {}, 1.0, 0.5)
    return Protection(name, (), PolicyChoice("equal-resources"), outcome, extra)


def test_where_nothing_keeps_within_the_work_the_nearest_is_named() -> None:
    plans = [plan("near", 2.0, 0.3), plan("far", 1.0, 0.6)]
    with pytest.raises(UserError, match=r"nearest is near, with 0\.300; give --extra-work 0\.3"):
        advise(plans, plans, [plan("none", 3.0, 0.0)], SearchOptions(extra_work=0.1))


@pytest.mark.slow
def test_simulations_are_as_long_as_there_is_time_for_and_hedging_beats_nothing() -> None:
    simulations = Simulations(SearchOptions(), {1: 25.0}, 0.0, 1)
    assert simulations.scene.queries == 3000
    assert simulations.scene.rate == pytest.approx(0.5 * 12 / 0.0254, rel=0.05)
    assert simulations.without.extra_work == pytest.approx(0, abs=0.01)
    hedging = simulations.hedging()
    assert hedging.p99_ms < simulations.without.p99_ms
    assert 0 < hedging.extra_work < 0.2
    shuffles = standard_contention(12, 0.025).shuffles
    assert shuffles is not None
    assert shuffles.transfers == 4


@pytest.mark.slow
def test_batches_are_simulated_with_their_times() -> None:
    busy = SearchOptions(load=0.95, contention="{}")
    alone = Simulations(busy, {1: 25.0, 4: 100.0}, 0.0, 1)
    dear = Simulations(busy, {1: 25.0, 4: 100.0}, 0.0, 1, max_batch=4)
    cheap = Simulations(busy, {1: 25.0, 4: 28.0}, 0.0, 1, max_batch=4)
    assert alone.scene.rate == dear.scene.rate == cheap.scene.rate
    assert cheap.without.p99_ms < 0.8 * alone.without.p99_ms < 1.2 * dear.without.p99_ms
    # In batches work is less; only what redundancy adds is more work.
    assert cheap.without.extra_work == 0
    assert 0 <= cheap.hedging().extra_work < 0.2
