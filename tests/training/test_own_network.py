"""A parity model's network may be a function of the user's."""

import sys
from pathlib import Path

import pytest

from own_models import Parm
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.registry import load_own

pytestmark = pytest.mark.slow

FACTORIES = """
from torch import nn

def good(input_shape, output_shape, grid=(1, 1)):
    assert grid == (2, 1) or grid == (1, 2) or grid == (1, 1)
    return Own(input_shape, output_shape)

class Own(nn.Module):
    def __init__(self, input_shape, output_shape):
        super().__init__()
        self.shape = output_shape
        self.layer = nn.LazyLinear(output_shape[0] * output_shape[1])

    def forward(self, queries):
        return self.layer(queries.flatten(1)).reshape(-1, *self.shape)

def fails(input_shape, output_shape):
    raise ZeroDivisionError("no")

def nothing(input_shape, output_shape):
    return None

def few(input_shape):
    return nn.Identity()

def wrong(input_shape, output_shape):
    return nn.Flatten()

def picky(input_shape, output_shape):
    return nn.Linear(3, 4)

def fixed(input_shape, output_shape):
    return Fixed(input_shape, output_shape)

class Fixed(Own):
    def forward(self, queries):
        return super().forward(queries).reshape(len(queries), *self.shape)

number = 4
"""


def test_a_network_may_come_from_a_function_in_the_current_folder(
    parm: Parm, tmp_path: Path
) -> None:
    (tmp_path / "mine_good.py").write_text(FACTORIES)
    parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle "
        "--encoder concatenation --parity-network mine_good:good --epochs 2"
    )
    (parity,) = open_bundle(tmp_path / "bundle").manifest.parity
    assert parity.network == "mine_good:good"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("absent_package.module:f", "there is no module 'absent_package' here or installed"),
        ("mine:absent", "mine.py) has no 'absent'"),
        ("mine:", "is not of the form package.module:name"),
        (":f", "is not of the form package.module:name"),
        ("broken:f", "importing broken failed: SyntaxError"),
        ("mine:number", "mine:number is 4, not a function"),
        ("mine:fails", "mine:fails((2, 8, 8), (2, 10)) failed: ZeroDivisionError: no"),
        ("mine:few", "failed: TypeError"),
        ("mine:nothing", "mine:nothing made NoneType, not a torch.nn.Module"),
        ("mine:wrong", "gives (2, 128) for 2 inputs, where (2, 2, 10) is needed"),
        ("mine:picky", "cannot take inputs of shape (2, 8, 8): RuntimeError"),
        (
            "mine:fixed",
            "cannot be served from ONNX: ModelError: it has input 'input' of shape [2, 2, 8, 8]",
        ),
        ("nobody", "there is no network 'nobody'; there are"),
    ],
)
def test_networks_that_cannot_be_are_refused(
    parm: Parm, tmp_path: Path, reference: str, reason: str
) -> None:
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("def f(:")
    said = parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle "
        f"--parity-network {reference}",
        code=2,
    )
    assert reason in said
    assert not (tmp_path / "bundle").exists()


def test_code_is_loaded_only_by_a_name_of_the_right_form() -> None:
    assert load_own("math:pi") == pytest.approx(3.14159, abs=1e-5)
    for reference in ["math", "math:", ":pi", "math:pi:e", "math:__import__('os')"]:
        with pytest.raises(UserError, match="is not of the form"):
            load_own(reference)
