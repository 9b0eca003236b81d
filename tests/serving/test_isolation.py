"""A bundle knows whether what is in one slot of its code can change another slot's prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_models import linear_model
from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.tasks import find_task
from parity_models.training import Settings, train_deployed, train_parity

STACK = CodeSpec("stack", "separate", 2)


@pytest.mark.parametrize(
    ("encoder", "decoder", "isolated"),
    [
        ("stack", "separate", True),
        ("concatenation", "separate", True),
        ("stack", "subtraction", False),
        ("sum", "subtraction", False),
        ("sum", "mlp", False),
        ("mlp", "separate", False),
        ("convolution", "separate", False),
    ],
)
def test_a_code_says_whether_it_keeps_slots_apart(
    encoder: str, decoder: str, isolated: bool
) -> None:
    code = Code(CodeSpec(encoder, decoder, 2), (1, 8, 8), (3,))
    assert code.isolated is isolated


def apart() -> NDArray[np.float32]:
    """Weights (8, 6) of a linear parity model for two slots that runs on each by itself."""
    weights = np.zeros((8, 6), np.float32)
    weights[:4, :3] = weights[4:, 3:] = np.random.default_rng(0).normal(size=(4, 3))
    return weights


def write(folder: Path, weights: NDArray[np.float32] | None, **claims: Any) -> Bundle:
    linear_model(folder / "deployed.onnx", (4,), (3,))
    linear_model(folder / "parity.onnx", (8,), (2, 3), weights)
    return write_bundle(
        folder / "bundle",
        deployed=NewModel(folder / "deployed.onnx", "linear"),
        parity=[NewModel(folder / "parity.onnx", "linear", **claims)],
        code=STACK,
    )


def test_a_bundle_is_isolated_if_its_code_and_its_parity_models_keep_slots_apart(
    tmp_path: Path,
) -> None:
    assert write(tmp_path, apart(), slotwise=True).isolated
    opened = open_bundle(tmp_path / "bundle")
    assert opened.isolated
    assert opened.stored(opened.manifest.parity[0]).slotwise


def test_a_parity_model_of_which_nothing_is_known_is_not_taken_for_isolated(tmp_path: Path) -> None:
    assert not write(tmp_path, apart()).isolated


def test_a_bundle_without_a_code_is_isolated(tmp_path: Path) -> None:
    linear_model(tmp_path / "deployed.onnx", (4,), (3,))
    model = NewModel(tmp_path / "deployed.onnx", "linear")
    assert write_bundle(tmp_path / "bundle", deployed=model).isolated


@pytest.mark.parametrize("leak", [1.0, 1e-30])
def test_a_parity_model_that_mixes_slots_cannot_be_called_slotwise(
    tmp_path: Path, leak: float
) -> None:
    weights = apart()
    weights[6, 1] = leak
    with pytest.raises(BundleError, match=r"parity-0\.onnx.*slot 1 changes.*slot 0"):
        write(tmp_path, weights, slotwise=True)


def test_training_records_which_networks_run_slot_by_slot(tmp_path: Path) -> None:
    digits, once = find_task("digits").load(None), Settings(epochs=1)
    task, inputs = find_task("digits"), digits.train.inputs
    deployed = train_deployed(task, digits, "resnet-small", tmp_path / "f", once).bundle
    one = train_parity(deployed, STACK, inputs, tmp_path / "one", once, network="resnet-small")
    assert one.bundle.isolated
    other = train_parity(deployed, STACK, inputs, tmp_path / "other", once, network="mlp")
    assert not other.bundle.isolated
