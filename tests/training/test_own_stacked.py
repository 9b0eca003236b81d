"""A network of the user's says itself how it is built for a code, and what of it starts from F."""

from pathlib import Path

import pytest
import torch
from torch import nn

from own_models import STACK, Parm
from own_stacked import ATTENDING, PLAIN, Group
from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.bundle import open_bundle
from parity_models.models.networks.slotwise import Slotwise
from parity_models.training.candidates import build_models
from parity_models.training.distillation import calibrate_last_layer
from parity_models.training.networks import parity_network

CODE = Code(STACK, (1, 8, 8), (10,))


def test_it_is_built_for_the_code_with_its_options_and_grid() -> None:
    plan = parity_network(f"{ATTENDING}@units=5", CODE)
    network = plan.make()
    assert isinstance(network, Group)
    assert (network.first.out_features, plan.places, plan.recipe.epochs) == (5, (2, 1), 3)


def test_it_says_whether_it_starts_from_the_deployed_model() -> None:
    plan = parity_network(ATTENDING, Code(CodeSpec("stack", "separate", 2, 2), (1, 8, 8), (10,)))
    (first, second), started = build_models(plan, 2, nn.Flatten())
    assert isinstance(first, Group)
    assert isinstance(second, Group)
    assert started
    assert bool((first.last.bias == 7).all())
    assert not bool((second.last.bias == 7).any())


def test_its_one_last_layer_is_calibrated_for_all_slots() -> None:
    network = parity_network(ATTENDING, CODE).make()
    inputs, targets = torch.randn(64, 2, 8, 8), 5 + 3 * torch.randn(64, 2, 10)
    calibrate_last_layer(network, inputs, targets)
    torch.testing.assert_close(network(inputs).mean((0, 1)), targets.mean((0, 1)))


def test_codes_that_it_cannot_be_for_are_refused_in_its_own_words() -> None:
    code = Code(CodeSpec("stack", "separate", 8), (1, 8, 8), (10,))
    with pytest.raises(TrainingError, match="attending takes 6 images at most, not 8"):
        parity_network(ATTENDING, code).make()


def test_one_that_says_nothing_of_codes_runs_on_each_stacked_image_by_itself() -> None:
    network = parity_network(PLAIN, CODE).make()
    assert isinstance(network, Slotwise)
    assert network(torch.zeros(3, 2, 8, 8)).shape == (3, 2, 10)


@pytest.mark.slow
def test_it_is_trained_and_bundled_like_this_packages_own(parm: Parm, tmp_path: Path) -> None:
    parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle --encoder "
        f"stack --decoder separate --parity-network {ATTENDING}@units=16 --epochs 2"
    )
    (parity,) = open_bundle(tmp_path / "bundle").manifest.parity
    assert (parity.network, parity.slotwise) == (f"{ATTENDING}@units=16", False)
