"""Training reaches accuracy, repeats exactly, and refuses what cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from own_models import DIGITS, STACK
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, CodeError, DataError, TrainingError, UserError
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.networks import NETWORKS
from parity_models.training import Trained, TrainingOptions
from trainings import Train, evaluate, fail_at, train_parity, weights

pytestmark = pytest.mark.slow


def test_a_deployed_model_is_accurate_and_its_bundle_says_how_it_was_trained(
    deployed: Trained,
) -> None:
    bundle = open_bundle(deployed.path)
    accuracy = evaluate(bundle, DIGITS.test.inputs, DIGITS.test.labels)
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
    train: Train, spec: CodeSpec, least: float
) -> None:
    outcome = train(spec, epochs=30)
    bundle = open_bundle(outcome.path)
    assert len(bundle.parity_paths) == spec.r
    accuracy = evaluate(bundle, DIGITS.test.inputs, DIGITS.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > least
    # What training chose the epoch by is what evaluation measures, on other queries.
    assert abs(accuracy.degraded_accuracy - outcome.fitted.score) < 0.08


def test_a_parity_model_may_have_another_network(train: Train) -> None:
    outcome = train(CodeSpec("concatenation", "separate", 4), network="resnet-small", epochs=1)
    assert outcome.manifest.deployed.network == "mlp"
    assert [model.network for model in outcome.manifest.parity] == ["resnet-small"]


def test_every_network_says_what_it_is_trained_with() -> None:
    for network in NETWORKS:
        assert network.parity
        assert network.deployed


def test_labels_are_not_needed(deployed: Trained, tmp_path: Path) -> None:
    inputs, out = DIGITS.train.inputs, tmp_path / "bundle"
    outcome = train_parity(deployed, STACK, inputs, out, TrainingOptions(epochs=30), network="mlp")
    accuracy = evaluate(outcome, DIGITS.test.inputs, DIGITS.test.labels)
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


def test_a_time_limit_ends_training_and_anneals_it(train: Train) -> None:
    spent: list[float] = []
    outcome = train(seconds=1.5, report=lambda progress: spent.append(progress.spent))
    assert outcome.fitted.seconds >= 1.5
    assert spent == sorted(spent)
    assert spent[-1] == 1


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
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"device": "abacus"}, "leave it out"),
        ({"device": "cuda:99"}, "leave it out"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    train: Train, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        train(**settings)


def test_inputs_that_do_not_fit_are_refused(deployed: Trained, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs
    cases: list[tuple[NDArray[Any], str]] = [
        (inputs[:, :, :7], "has rows of shape"),
        (inputs[:1], "too few"),
        (inputs[:2], "too few"),
    ]
    for wrong, reason in cases:
        with pytest.raises(DataError, match=reason):
            train_parity(deployed, STACK, wrong, tmp_path / "bundle", TrainingOptions(epochs=1))
    with pytest.raises(CodeError, match="tell the slots apart"):
        train_parity(deployed, CodeSpec("sum", "separate", 2), inputs, tmp_path / "bundle")
    with pytest.raises(CodeError, match="256 at most"):
        train_parity(deployed, CodeSpec("stack", "separate", 257), inputs, tmp_path / "b")
    with pytest.raises(TrainingError, match="resnet-1d takes sequences"):
        train_parity(deployed, STACK, inputs, tmp_path / "bundle", network="resnet-1d")


def test_weights_that_do_not_fit_the_network_they_are_said_to_be_of_are_refused(
    deployed: Trained, tmp_path: Path
) -> None:
    for content in (b"noise", (deployed.path / "deployed.safetensors").read_bytes()):
        wrong: Bundle = write_bundle(
            tmp_path / "wrong",
            deployed=NewModel(deployed.deployed_path, "linear"),
            files={"deployed.safetensors": content},
        )
        with pytest.raises(BundleError, match="does not fit the network linear"):
            train_parity(
                wrong, STACK, DIGITS.train.inputs, tmp_path / "bundle", TrainingOptions(epochs=1)
            )
