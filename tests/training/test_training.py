"""Training reaches accuracy, repeats exactly, survives interruption, and refuses what cannot be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, CodeError, DataError, TrainingError
from parity_models.evaluation import evaluate
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.networks import NETWORKS
from parity_models.tasks import Dataset, find_task
from parity_models.training import Outcome, Progress, Settings, train_deployed, train_parity
from parity_models.training.recipes import draw_as_published
from parity_models.training.schedule import Budget, Constant, OneCycle

DIGITS = find_task("digits")
STACK = CodeSpec("stack", "separate", 2)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DIGITS.load(None)


@pytest.fixture(scope="module")
def deployed(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("deployed") / "mlp"
    return train_deployed(DIGITS, digits, "mlp", out, Settings(epochs=40))


Train = Callable[..., Outcome]


@pytest.fixture
def train(deployed: Outcome, digits: Dataset, tmp_path: Path) -> Train:
    """Trains a parity model on the digits into tmp_path / name."""

    def run(
        spec: CodeSpec = STACK,
        name: str = "bundle",
        network: str = "mlp",
        recipe: str = "distilled",
        **settings: Any,
    ) -> Outcome:
        return train_parity(
            deployed.bundle,
            spec,
            digits.train.inputs,
            tmp_path / name,
            Settings(**settings),
            network=network,
            validation=digits.validation,
            recipe=recipe,
        )

    return run


def fail_at(share: float, error: BaseException) -> Callable[[Progress], None]:
    """A report that breaks a training off when `share` of its budget is spent."""

    def report(progress: Progress) -> None:
        if progress.spent >= share:
            raise error

    return report


def weights(outcome: Outcome) -> list[str]:
    return [model.sha256 for model in outcome.bundle.manifest.parity]


def test_a_deployed_model_is_accurate_and_its_bundle_says_how_it_was_trained(
    deployed: Outcome, digits: Dataset
) -> None:
    bundle = open_bundle(deployed.bundle.path)
    accuracy = evaluate(bundle, digits.test.inputs, digits.test.labels)
    assert accuracy.available_accuracy > 0.95
    training = bundle.manifest.deployed_training
    assert training is not None
    assert (training.task, training.inputs, training.epochs) == ("digits", 1200, 40)
    assert training.recipe["network"] == "mlp"
    assert bundle.manifest.code is None


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (CodeSpec("sum", "subtraction", 2), 0.85),
        (CodeSpec("concatenation", "separate", 2), 0.85),
        (CodeSpec("concatenation", "subtraction", 2), 0.85),
        (CodeSpec("stack", "separate", 3), 0.85),
        (CodeSpec("stack", "subtraction", 2), 0.85),
        (CodeSpec("sum", "subtraction", 3, 2), 0.6),
    ],
    ids=str,
)
def test_parity_models_of_every_code_reconstruct(
    train: Train, digits: Dataset, spec: CodeSpec, least: float
) -> None:
    outcome = train(spec, epochs=30)
    bundle = open_bundle(outcome.bundle.path)
    assert len(bundle.parity_paths) == spec.r
    accuracy = evaluate(bundle, digits.test.inputs, digits.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > least
    # What training chose the epoch by is what evaluation measures, on other queries.
    assert abs(accuracy.degraded_accuracy - outcome.fitted.score) < 0.08


def test_a_parity_model_may_have_another_network(train: Train) -> None:
    outcome = train(CodeSpec("concatenation", "separate", 4), network="resnet-small", epochs=1)
    assert outcome.bundle.manifest.deployed.network == "mlp"
    assert [model.network for model in outcome.bundle.manifest.parity] == ["resnet-small"]


def test_every_network_says_what_it_is_trained_with() -> None:
    assert all(network.deployed and network.parity for network in NETWORKS)


def test_labels_are_not_needed(deployed: Outcome, digits: Dataset, tmp_path: Path) -> None:
    inputs, out = digits.train.inputs, tmp_path / "bundle"
    outcome = train_parity(deployed.bundle, STACK, inputs, out, Settings(epochs=30), network="mlp")
    accuracy = evaluate(outcome.bundle, digits.test.inputs, digits.test.labels)
    assert accuracy.agreement is not None
    assert accuracy.agreement > 0.9
    assert abs(accuracy.agreement - outcome.fitted.score) < 0.08


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train: Train) -> None:
    once, again = train(epochs=3, name="once"), train(epochs=3, name="again")
    other = train(epochs=3, name="other", seed=1)
    assert weights(once) == weights(again) != weights(other)


def test_the_callers_randomness_is_left_alone(train: Train) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(epochs=1)
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize("network", ["mlp", "resnet-small"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    train: Train, tmp_path: Path, network: str
) -> None:
    with pytest.raises(MemoryError):
        train(network=network, epochs=3, report=fail_at(2 / 3, MemoryError()))
    assert not (tmp_path / "bundle").exists()
    told: list[int] = []
    resumed = train(
        network=network, epochs=3, resume=True, report=lambda progress: told.append(progress.epoch)
    )
    assert min(told) == 3
    assert weights(resumed) == weights(train(network=network, epochs=3, name="uninterrupted"))
    assert not (tmp_path / "bundle.checkpoint").exists()


def test_an_interrupt_leaves_the_best_so_far_and_can_be_resumed(
    train: Train, digits: Dataset
) -> None:
    stopped = train(epochs=100, report=fail_at(20 / 100, KeyboardInterrupt()))
    assert stopped.fitted.resumable
    assert stopped.fitted.epochs == 20
    accuracy = evaluate(open_bundle(stopped.bundle.path), digits.test.inputs, digits.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.7
    resumed = train(epochs=22, resume=True)
    assert not resumed.fitted.interrupted
    assert not resumed.fitted.resumable
    assert resumed.fitted.epochs == 22


def test_an_interrupt_before_the_first_epoch_still_leaves_a_bundle(train: Train) -> None:
    stopped = train(epochs=100, report=fail_at(0, KeyboardInterrupt()))
    assert stopped.fitted.interrupted
    assert not stopped.fitted.resumable
    assert open_bundle(stopped.bundle.path).code() is not None


def test_ctrl_c_on_the_command_line_writes_the_bundle_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = ["train", "--task", "digits", "--out", str(out), "--epochs", "1000000"]
    with subprocess.Popen(
        [sys.executable, "-c", "from parity_models.cli.main import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        checkpoint = tmp_path / "model.checkpoint"
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 0
    assert "interrupted" in said
    assert "--resume" in said
    assert open_bundle(out).manifest.accuracy is not None


def test_a_time_limit_ends_training_and_anneals_it(train: Train) -> None:
    spent: list[float] = []
    outcome = train(seconds=1.5, report=lambda progress: spent.append(progress.spent))
    assert outcome.fitted.seconds >= 1.5
    assert spent == sorted(spent)
    assert spent[-1] == 1


def test_the_tighter_of_two_limits_counts() -> None:
    budget = Budget(epochs=10, seconds=100)
    assert budget.spent(5, 20) == 0.5
    assert budget.spent(1, 80) == 0.8
    assert budget.spent(11, 0) == 1


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    schedule = OneCycle(learning_rate=1.0, weight_decay=0.0)
    rates = [schedule.at(spent) for spent in np.linspace(0, 1, 101)]
    assert max(rates) == rates[20] == 1
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_the_published_learning_rate_stays() -> None:
    schedule = Constant(learning_rate=1e-3, weight_decay=1e-5)
    assert {schedule.at(spent) for spent in np.linspace(0, 1, 11)} == {1e-3}


def test_the_published_recipe_trains_published_codes(train: Train, digits: Dataset) -> None:
    outcome = train(CodeSpec("sum", "subtraction", 2), recipe="published", epochs=60)
    training = outcome.bundle.manifest.parity_training
    assert training is not None
    assert training.recipe["style"] == "published"
    assert training.recipe["batch"] == 64
    accuracy = evaluate(outcome.bundle, digits.test.inputs, digits.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.6


def test_published_weights_are_drawn_as_the_paper_s_code_draws_them() -> None:
    convolution, normalisation, full = nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Linear(200, 100)
    nn.Sequential(convolution, normalisation, full).apply(draw_as_published)
    assert float(full.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert float(convolution.weight.abs().max()) <= 2**0.5 * (6 / (9 * (16 + 32))) ** 0.5
    for layer in (full, convolution):
        assert layer.bias is not None
        assert not layer.bias.any()
    assert bool((normalisation.weight == 1).all())


def test_a_deployed_model_may_be_trained_as_published(digits: Dataset, tmp_path: Path) -> None:
    outcome = train_deployed(
        DIGITS, digits, "mlp", tmp_path / "F", Settings(epochs=1), recipe="published"
    )
    training = outcome.bundle.manifest.deployed_training
    assert training is not None
    assert training.recipe["style"] == "published"
    assert training.recipe["weight_decay"] == 1e-5
    assert training.recipe["batch"] == 64
    with pytest.raises(TrainingError, match="no recipe is called 'secret'; there are usual"):
        train_deployed(DIGITS, digits, "mlp", tmp_path / "F", recipe="secret")


@pytest.mark.parametrize(
    ("spec", "recipe", "reason"),
    [
        (STACK, "published", "for sum and concatenation with subtraction"),
        (CodeSpec("concatenation", "separate", 2), "published", "leave --recipe out"),
        (STACK, "secret", "no recipe is called 'secret'; there are distilled, published"),
    ],
    ids=str,
)
def test_recipes_that_cannot_be_are_refused(
    train: Train, spec: CodeSpec, recipe: str, reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        train(spec, recipe=recipe, epochs=1)


def test_a_checkpoint_is_refused_by_a_run_with_other_options(train: Train) -> None:
    with pytest.raises(MemoryError):
        train(epochs=4, report=fail_at(1 / 4, MemoryError()))
    with pytest.raises(TrainingError, match="seed 0, now 1"):
        train(epochs=4, resume=True, seed=1)
    with pytest.raises(TrainingError, match="code stack"):
        train(CodeSpec("sum", "subtraction", 2), epochs=4, resume=True)


def test_a_checkpoint_that_is_missing_or_damaged_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(epochs=4, resume=True)
    with pytest.raises(MemoryError):
        train(epochs=4, report=fail_at(1 / 4, MemoryError()))
    checkpoint = tmp_path / "bundle.checkpoint"
    content = checkpoint.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 100):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match="damaged"):
            train(epochs=4, resume=True)


def test_a_checkpoint_holds_tensors_and_json_alone(train: Train, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        train(epochs=4, report=fail_at(2 / 4, MemoryError()))
    with safe_open(tmp_path / "bundle.checkpoint", "pt") as file:
        run = msgspec.json.decode(file.metadata()["run"])
    assert run["epochs"] == 2
    assert run["options"]["code"] == str(STACK)


def test_a_folder_that_is_no_bundle_is_refused_before_training(
    train: Train, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").touch()
    with pytest.raises(BundleError, match="choose another folder"):
        train(epochs=1, report=fail_at(0, AssertionError("trained")))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": 0}, "1 epoch or more"),
        ({"seconds": 0.0}, "more than 0 seconds"),
        ({"seconds": float("nan")}, "more than 0 seconds"),
        ({"seed": -1}, "a seed is from 0"),
        ({"device": "abacus"}, "leave it out"),
        ({"device": "cuda:99"}, "leave it out"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    train: Train, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        train(**settings)


def test_inputs_that_do_not_fit_are_refused(
    deployed: Outcome, digits: Dataset, tmp_path: Path
) -> None:
    inputs = digits.train.inputs
    cases: list[tuple[NDArray[Any], str]] = [
        (inputs[:, :, :7], "takes float32 of shape"),
        (inputs.astype(np.float64), "takes float32 of shape"),
        (inputs[:1], "too few"),
        (inputs[:2], "too few"),
    ]
    for wrong, reason in cases:
        with pytest.raises(DataError, match=reason):
            train_parity(deployed.bundle, STACK, wrong, tmp_path / "bundle", Settings(epochs=1))
    with pytest.raises(CodeError, match="tell the slots apart"):
        train_parity(deployed.bundle, CodeSpec("sum", "separate", 2), inputs, tmp_path / "bundle")
    with pytest.raises(CodeError, match="256 at most"):
        train_parity(deployed.bundle, CodeSpec("stack", "separate", 257), inputs, tmp_path / "b")
    with pytest.raises(TrainingError, match="at least 12x12"):
        train_parity(deployed.bundle, STACK, inputs, tmp_path / "bundle", network="lenet5")


def test_weights_that_do_not_fit_the_network_they_are_said_to_be_of_are_refused(
    deployed: Outcome, digits: Dataset, tmp_path: Path
) -> None:
    for weights in (b"noise", (deployed.bundle.path / "deployed.safetensors").read_bytes()):
        wrong: Bundle = write_bundle(
            tmp_path / "wrong",
            deployed=NewModel(deployed.bundle.deployed_path, "linear"),
            files={"deployed.safetensors": weights},
        )
        with pytest.raises(BundleError, match="does not fit the network linear"):
            train_parity(wrong, STACK, digits.train.inputs, tmp_path / "bundle", Settings(epochs=1))
