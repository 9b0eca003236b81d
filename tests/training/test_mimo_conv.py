"""Images superposed inside a network are answered each by its own slot, in one run of its trunk."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnx_models import output_of
from own_models import DIGITS, STACK, Parm
from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.evaluation import evaluate
from parity_models.models.bundle import open_bundle
from parity_models.models.export import export, floats
from parity_models.models.networks import build_network
from parity_models.models.networks.slotwise import Shape
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.candidates import build_models
from parity_models.training.networks import parity_network
from parity_models_lab.networks import MIMOConv
from trainings import Train

NEW_AXIS = CodeSpec("stack", "separate", 2, encoder_options={"new_axis": True})


def settled(shape: Shape = (3, 16, 16), spec: CodeSpec = STACK) -> MIMOConv:
    """One for 10 classes, with running statistics that are not the defaults."""
    torch.manual_seed(0)
    code = Code(spec, shape, (10,))
    network = parity_network("mimo-conv", code).make()
    assert isinstance(network, MIMOConv)
    network(torch.randn(16, *code.parity_shape))
    return network.eval()


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    """Of images (n, k, channels, height, width)."""
    outputs: Tensor = network(images.flatten(1, 2))
    return outputs


@pytest.mark.parametrize(
    ("spec", "shape", "places"),
    [
        (NEW_AXIS, (1, 9, 11), (2, 2)),
        (CodeSpec("stack", "separate", 4), (3, 16, 12), (4, 3)),
    ],
    ids=str,
)
@pytest.mark.slow
def test_it_computes_the_same_in_onnx_runtime_for_any_batch(
    spec: CodeSpec, shape: Shape, places: tuple[int, int]
) -> None:
    code = Code(spec, shape, (10,))
    assert parity_network("mimo-conv", code).places == places
    network = settled(shape, spec)
    model = OnnxModel(export(network, [floats(code.parity_shape)]))
    for rows in (1, 2, 7):
        batch = torch.randn(rows, *code.parity_shape)
        with torch.no_grad():
            expected = network(batch).numpy()
        assert expected.shape == (rows, spec.k, 10)
        np.testing.assert_allclose(output_of(model, batch.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_slots_are_told_apart_by_their_keys_alone() -> None:
    network, images = settled(), torch.randn(5, 2, 3, 16, 16)
    before = answers(network, images)
    assert not torch.allclose(answers(network, images.flip(1)), before.flip(1), atol=1e-3)
    with torch.no_grad():
        bind, unbind = network.bind.weight, network.unbind.weight
        bind.copy_(torch.cat(bind.chunk(2, dim=1)[::-1], dim=1))
        unbind.copy_(torch.cat(unbind.chunk(2, dim=0)[::-1], dim=0))
    torch.testing.assert_close(answers(network, images.flip(1)), before.flip(1))


def test_a_slot_depends_on_the_images_in_the_others() -> None:
    network, images = settled(), torch.randn(5, 2, 3, 16, 16)
    other = torch.stack([images[:, 0], torch.randn(5, 3, 16, 16)], dim=1)
    assert not torch.allclose(answers(network, other)[:, 0], answers(network, images)[:, 0])


def test_the_trunk_runs_once_for_all_images() -> None:
    network, seen = settled((1, 28, 28), CodeSpec("stack", "separate", 4)), []
    network.network.stages.register_forward_hook(lambda *each: seen.append(each[1][0].shape))
    answers(network, torch.randn(3, 4, 1, 28, 28))
    assert seen == [(3, 16, 28, 28)]


def test_keys_turn_what_they_bind_and_the_first_begins_as_none() -> None:
    torch.manual_seed(0)
    network = MIMOConv((1, 28, 28), (10,), 3)
    keys = network.bind.weight[:, :, 0, 0].unflatten(1, (3, -1)).movedim(1, 0)
    torch.testing.assert_close(keys[0], torch.eye(16))
    torch.testing.assert_close(keys @ keys.mT, torch.eye(16).expand(3, 16, 16))
    assert not torch.allclose(keys[1], keys[2])


def test_it_starts_as_the_deployed_model_for_an_image_that_nothing_is_added_to() -> None:
    torch.manual_seed(1)
    deployed = build_network("resnet-small", (3, 16, 16), (10,))
    deployed(torch.randn(16, 3, 16, 16))
    deployed.eval()
    plan = parity_network("mimo-conv", Code(STACK, (3, 16, 16), (10,)))
    (network,), started = build_models(plan, 1, deployed)
    assert started
    assert isinstance(network, MIMOConv)
    with torch.no_grad():
        first, other = network.bind.weight.chunk(2, dim=1)
        first *= 2**0.5
        other.zero_()
    images = torch.randn(5, 2, 3, 16, 16)
    with torch.no_grad():
        expected = deployed(images[:, 0])
    torch.testing.assert_close(answers(network.eval(), images)[:, 0], expected)


@pytest.mark.parametrize(
    ("spec", "shape", "network", "reason"),
    [
        (CodeSpec("sum", "subtraction", 2), (1, 8, 8), "mimo-conv", "for sum with subtraction"),
        (CodeSpec("stack", "subtraction", 2), (1, 8, 8), "mimo-conv", "--decoder separate"),
        (
            CodeSpec("stack", "separate", 2, encoder_options={"axis": 1}),
            (1, 8, 8),
            "mimo-conv",
            "first axis, not along axis 1",
        ),
        (STACK, (64,), "mimo-conv", r"mimo-conv takes images .* not queries of shape \(64,\)"),
        (STACK, (3, 40), "mimo-conv@0.5", r"not queries of shape \(3, 40\)"),
        (STACK, (1, 3, 8), "mimo-conv", "at least 4x4"),
        (STACK, (1, 8, 8), "mimo-conv@5", "width of mimo-conv must be above 0 and 4 or less"),
    ],
)
def test_what_it_cannot_take_is_refused(
    spec: CodeSpec, shape: Shape, network: str, reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        parity_network(network, Code(spec, shape, (10,))).make()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("backup --from deployed", "mimo-conv answers several images at once"),
        ("parity --model {digits}/model.onnx --k 1", "k must be 2 or more"),
        ("parity --model {digits}/model.onnx --encoder concatenation", "use --encoder stack"),
    ],
)
@pytest.mark.slow
def test_on_the_command_line_it_is_a_parity_model_alone(
    parm: Parm, command: str, reason: str
) -> None:
    parm("bundle {digits}/model.onnx --out deployed")
    data = "--inputs {digits}/inputs.npy"
    assert reason in parm(f"{command} {data} --network mimo-conv --out bundle", 2)


@pytest.mark.slow
def test_trained_it_answers_digits_in_both_slots_and_its_bundle_says_how(train: Train) -> None:
    bundle = train(network="mimo-conv@0.5", epochs=30)
    accuracy = evaluate(bundle, DIGITS.test.inputs, DIGITS.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.85
    opened = open_bundle(bundle.path)
    [parity] = opened.manifest.parity
    assert (parity.network, parity.slotwise) == ("mimo-conv@0.5", False)
    assert not opened.isolated
    assert not opened.manifest.backups
