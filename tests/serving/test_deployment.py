"""A deployment says if slots of its code are isolated, and runs batches where they pay."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from linear_bundles import CLASSES, linear_bundle
from onnx_models import linear_model, output_of
from parity_models import CodeSpec, PolicyChoice, ServeOptions, TrainingOptions
from parity_models.bundle.bundle import Bundle, InferenceTimes, NewModel, open_bundle, write_bundle
from parity_models.bundle.inference_time import measure_models
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.errors import BundleError
from parity_models.serving.deployment import Deployment
from parity_models.simulation.emulation import Constant, FaultPlan
from parity_models.training.export import floats
from parity_models.trust.envelope import Envelope, fit_envelope
from parity_models_lab.deployed import train_deployed
from parity_models_lab.tasks import find_task
from trainings import train_parity
from whole_bundle import tamper

STACK = CodeSpec("stack", "separate", 2)
NONE = ServeOptions(policy=PolicyChoice("none"))


def apart() -> NDArray[np.float32]:
    """Weights (8, 6) of a linear parity model for two slots that runs on each by itself."""
    weights = np.zeros((8, 6), np.float32)
    weights[:4, :3] = weights[4:, 3:] = np.random.default_rng(0).normal(size=(4, 3))
    return weights


def write(
    folder: Path, weights: NDArray[np.float32], envelope: Envelope | None = None, **claims: Any
) -> Bundle:
    """A bundle of linear models."""
    linear_model(folder / "deployed.onnx", (4,), (3,))
    linear_model(folder / "parity.onnx", (8,), (2, 3), weights)
    return write_bundle(
        folder / "bundle",
        deployed=NewModel(folder / "deployed.onnx", "linear"),
        parity=[NewModel(folder / "parity.onnx", "linear", **claims)],
        code=STACK,
        envelope=envelope,
    )


def test_a_bundle_is_isolated_if_its_code_and_models_keep_slots_apart(tmp_path: Path) -> None:
    assert write(tmp_path, apart(), slotwise=True).isolated
    opened = open_bundle(tmp_path / "bundle")
    assert opened.isolated
    assert opened.stored(opened.manifest.parity[0]).slotwise
    assert not write(tmp_path, apart()).isolated, "nothing is known of this parity model"
    alone = NewModel(tmp_path / "deployed.onnx", "linear")
    assert write_bundle(tmp_path / "alone", deployed=alone).isolated


@pytest.mark.parametrize("leak", [1.0, 1e-30])
def test_a_model_that_mixes_slots_cannot_be_called_slotwise(tmp_path: Path, leak: float) -> None:
    weights = apart()
    weights[6, 1] = leak
    with pytest.raises(BundleError, match=r"parity-0\.onnx.*slot 1 changes.*slot 0"):
        write(tmp_path, weights, slotwise=True)


@pytest.mark.slow
def test_training_records_which_networks_run_slot_by_slot(tmp_path: Path) -> None:
    digits, once = find_task("digits").load(), TrainingOptions(epochs=1)
    task, inputs = find_task("digits"), digits.train.inputs[:300]
    deployed = train_deployed(task, digits, "mlp", tmp_path / "f", once)
    one = train_parity(deployed, STACK, inputs, tmp_path / "one", once, network="resnet-small")
    assert one.isolated
    backup = one.manifest.backup
    assert backup is not None
    assert (backup.slot, backup.network) == (True, "resnet-small, one slot")
    code = one.code()
    assert code is not None
    alone, parity = OnnxModel(one.path / backup.file), OnnxModel(one.path / "parity-0.onnx")
    halves = inputs[:50], inputs[50:100]
    outputs = output_of(parity, code.encode([{"input": each} for each in halves])[0])
    for slot, half in enumerate(halves):
        np.testing.assert_allclose(output_of(alone, half), outputs[:, slot], rtol=1e-4, atol=1e-4)
    # It goes with its parity model: another one has a slot of its own.
    again = train_parity(one, STACK, inputs, tmp_path / "again", once, network="mlp")
    assert not again.isolated
    assert again.manifest.backup is None


@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("isolated", [True, False])
def test_warning_if_clients_can_harm_others(tmp_path: Path, isolated: bool, screened: bool) -> None:
    inputs = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    weights, queries = np.ones((4, 3), np.float32), {"input": inputs}
    screen = fit_envelope([floats((4,))], queries, queries, inputs @ weights) if screened else None
    if isolated:
        bundle = write(tmp_path, apart(), screen, slotwise=True)
    else:
        summed = CodeSpec("sum", "subtraction", 2)
        bundle = linear_bundle(tmp_path, weights, [weights], summed, envelope=screen)
    said = [note for note in Deployment(bundle, ServeOptions()).notes if "can spoil" in note]
    assert len(said) == (not screened and not isolated)
    assert not [note for note in Deployment(bundle, NONE).notes if "can spoil" in note]
    shared = [note for note in Deployment(bundle, ServeOptions()).notes if "share_groups" in note]
    assert len(shared) == (not isolated)
    for agreed in ({"share_groups": True}, {"tenant_header": "x-tenant"}):
        notes = Deployment(bundle, ServeOptions(**agreed)).notes
        assert not [note for note in notes if "share_groups" in note]


# Batches


WEIGHTS = np.random.default_rng(0).normal(size=(6, CLASSES)).astype(np.float32)


@pytest.mark.parametrize(
    ("single", "batch", "default"),
    [(1.0, 2.0, 4), (1.0, 1.5, 7), (1.0, 1.0, 16), (1.0, 2.4, 1), (1.0, None, 1), (0.01, 0.02, 16)],
)
def test_batches_are_run_where_they_pay(
    single: float, batch: float | None, default: int, tmp_path: Path
) -> None:
    path = linear_bundle(tmp_path, WEIGHTS).path
    times = msgspec.to_builtins(InferenceTimes(single, None, None, batch))
    tamper(path, lambda manifest: manifest.update(inference_times=times))
    bundle = open_bundle(path)
    assert Deployment(bundle, ServeOptions()).max_batch == default
    assert Deployment(bundle, ServeOptions(max_batch=3)).max_batch == 3
    faults = FaultPlan(service_time=Constant(0.01))  # in place of the measured times
    assert Deployment(bundle, ServeOptions(faults=faults)).max_batch == 1


def test_bundles_that_are_made_have_their_batches_measured(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path, WEIGHTS)
    times = measure_models(bundle.stored(bundle.manifest.deployed), [])
    assert (times.deployed_batch or 0) > 0
