"""Networks of parity models: which they are for a code, how they begin, and the user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from own_coders import DECODER
from parity_models.bundle.bundle import open_bundle
from parity_models.codes import Code, CodeSpec
from parity_models.errors import UserError
from parity_models.registry import load_own
from parity_models.training.network_plans import build_models, parity_network, recipe_for
from parity_models.training.networks import SmallResNet, build_network
from parity_models.training.networks.convolutional import ResidualNetwork
from parity_models.training.networks.network import EachSlot
from parity_models.training.networks.perceptrons import Perceptron
from parity_models.training.networks.queried import Shape
from trainings import STACK, Parm

SUM = CodeSpec("sum", "subtraction", 2)
IMAGE = (1, 16, 16)
CODE = Code(STACK, (1, 8, 8), (10,))


@pytest.mark.parametrize(
    ("spec", "shape", "network", "expected"),
    [
        (STACK, (1, 9, 9), "resnet-small", EachSlot),
        (CodeSpec("stack", "subtraction", 2), (1, 9, 9), "resnet-small", ResidualNetwork),
        (CodeSpec("stack", "separate", 8), (1, 6, 6), "resnet-small", ResidualNetwork),  # too small
        (STACK, (3, 40), "mlp@0.5", Perceptron),
        (STACK, IMAGE, "mlp", Perceptron),
    ],
    ids=str,
)
def test_stacked_queries_that_are_read_off_are_answered_each_by_itself(
    spec: CodeSpec, shape: Shape, network: str, expected: type[nn.Module]
) -> None:
    assert isinstance(parity_network(network, Code(spec, shape, (10,))).make(), expected)


@pytest.mark.parametrize(
    ("spec", "shape", "network", "places"),
    [
        (SUM, (1, 28, 28), "resnet-small", (7, 7)),
        (SUM, (1, 4, 64), "resnet-small", (1, 8)),
        (SUM, (1, 28, 28), "resnet18", (1, 1)),
        (SUM, (40,), "mlp", (1, 1)),
        (CodeSpec("concatenation", "subtraction", 2), (1, 28, 28), "resnet-small", (1, 1)),
        (CodeSpec("concatenation", "separate", 4), (1, 28, 28), "resnet-small", (2, 2)),
    ],
    ids=str,
)
def test_overlaid_places_and_tiles_are_seen_apart(
    spec: CodeSpec, shape: Shape, network: str, places: tuple[int, int]
) -> None:
    code = Code(spec, shape, (10,))
    chosen = parity_network(network, code)
    assert chosen.places == places
    outputs = chosen.make()(torch.zeros(2, *code.parity_shape))
    assert outputs.shape == (2, *code.parity_output_shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 64, 32)])
def test_a_model_that_sees_places_apart_starts_as_the_deployed_model(shape: Shape) -> None:
    deployed = build_network("resnet-small", shape, (10,)).eval()
    network = parity_network("resnet-small", Code(SUM, shape, (10,)))
    assert network.places != (1, 1)
    (parity,), started = build_models(network, 1, deployed)
    assert started
    queries = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(parity.eval()(queries), deployed(queries))


@pytest.mark.parametrize("decoder", ["subtraction", DECODER])
def test_sums_of_predictions_are_learned_for_longer_and_never_mirrored(decoder: str) -> None:
    sums = Code(CodeSpec("sum", decoder, 2), IMAGE, (10,))
    usual = recipe_for(SmallResNet, "parity", sums.parity_shape)
    recipe = parity_network("resnet-small", sums).recipe
    assert usual.mirror
    assert (recipe.epochs, recipe.mirror) == (4 * usual.epochs, False)
    assert parity_network("resnet-small", Code(STACK, IMAGE, (10,))).recipe == usual


# The user's own functions


class Fixed(nn.Linear):
    """Takes batches of two alone, once it is exported."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.reshape(2, 128)).reshape(2, 2, 10)


def good(takes: Shape, gives: Shape) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(gives[0] * gives[1]), nn.Unflatten(1, gives))


number = 4


@pytest.mark.slow
def test_a_network_may_come_from_a_function_here(parm: Parm, tmp_path: Path) -> None:
    (tmp_path / "mine_good.py").write_text(f"from {__name__} import good")
    parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle "
        "--encoder concatenation --network mine_good:good --epochs 2"
    )
    (parity,) = open_bundle(tmp_path / "bundle").manifest.parity
    assert parity.network == "mine_good:good"


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("absent_package.module:f", "No module named 'absent_package'"),
        (f"{__name__}:absent", "test_network_plans.py) has no 'absent'"),
        ("broken:f", "importing broken failed: SyntaxError"),
        (f"{__name__}:number", "test_network_plans:number is 4, not a function"),
        ("nobody", "there is no network 'nobody'; there are"),
        (lambda takes, gives: 1 / 0, "((2, 8, 8), (2, 10)) failed: ZeroDivisionError: division"),
        (lambda takes: nn.Identity(), "failed: TypeError"),
        (lambda takes, gives: None, "made NoneType, not a torch.nn.Module"),
        (lambda takes, gives: nn.Flatten(), "gives (2, 128) for 2 inputs, where (2, 2, 10) is"),
        (lambda takes, gives: nn.Linear(3, 4), "cannot take inputs of shape (2, 8, 8): Runtime"),
        (
            lambda takes, gives: Fixed(128, 20),
            "cannot be served from ONNX: ModelError: it has input 'input' of shape [2, 2, 8, 8]",
        ),
    ],
)
def test_functions_that_make_no_network_for_the_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, reason: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(UserError) as error:
        parity_network(network, CODE).make()
    assert reason in str(error.value)


def test_code_is_loaded_only_by_a_name_of_the_right_form() -> None:
    assert load_own("math:pi") == pytest.approx(3.14159, abs=1e-5)
    for reference in ["math", "math:", ":pi", "math:pi:e", "math:__import__('os')"]:
        with pytest.raises(UserError, match="is not of the form"):
            load_own(reference)
