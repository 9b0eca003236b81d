"""Users' own encoders and decoders are trained as this package's own that say the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from own_coders import ABREAST, DECODER, ENCODER, LISTED, PILED
from parity_models.codes import Code, CodeSpec, MLPEncoder
from parity_models.errors import CodeError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.export import export
from parity_models.models.networks import SmallResNet
from parity_models.models.networks.slotwise import Slotwise
from parity_models.models.signature import Signature, Tensor
from parity_models.training import TrainingOptions
from parity_models.training.candidates import STACKED, code_for
from parity_models.training.networks import parity_network
from parity_models.training.problems import CodedNetworks
from parity_models.training.recipes import recipe_for
from parity_models.training.teacher import teacher_of
from parity_models_lab.latency.setting import Setting
from trainings import train_parity

IMAGES = (1, 16, 16)


def test_images_stacked_and_read_off_are_answered_each_by_itself() -> None:
    code = Code(CodeSpec(PILED, LISTED, 3), IMAGES, (10,))
    assert isinstance(parity_network("resnet-small", code).make(), Slotwise)


def test_tiles_that_are_read_off_are_seen_apart() -> None:
    code = Code(CodeSpec(ABREAST, LISTED, 2), IMAGES, (10,))
    assert parity_network("resnet18", code).places == (1, 2)
    code = Code(CodeSpec(ABREAST, "subtraction", 2), IMAGES, (10,))
    assert parity_network("resnet18", code).places == (1, 1)


@pytest.mark.parametrize("decoder", ["subtraction", "mlp", DECODER])
def test_sums_of_predictions_are_learned_for_longer_and_never_mirrored(decoder: str) -> None:
    sums = Code(CodeSpec("sum", decoder, 2), IMAGES, (10,))
    usual = recipe_for(SmallResNet, "parity", sums.parity_shape)
    recipe = parity_network("resnet-small", sums).recipe
    assert usual.mirror
    assert (recipe.epochs, recipe.mirror) == (4 * usual.epochs, False)
    for coders in (("stack", "separate"), (PILED, LISTED)):
        assert (
            parity_network("resnet-small", Code(CodeSpec(*coders, 2), IMAGES, (10,))).recipe
            == usual
        )


class _Mean(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.mean(1)


def test_named_inputs_stacked_along_a_new_first_axis_have_parity_models(tmp_path: Path) -> None:
    signature = Signature((Tensor("ids", "INT32", (8,)),), (Tensor("scores", "FP32", (3,)),))
    model = export(nn.Sequential(nn.Embedding(9, 3), _Mean()), signature.inputs, "scores")
    bundle = write_bundle(tmp_path / "b", deployed=NewModel(model, "own", signature=signature))
    teacher = teacher_of(bundle)
    own = code_for(CodeSpec(PILED, LISTED, 2, 1, {"new": True}), teacher)
    ours = code_for(CodeSpec("stack", "separate", 2, 1, STACKED), teacher)
    assert own.parity_shapes == ours.parity_shapes
    code_for(CodeSpec("stack", "separate", 2, 1, {"axis": 0, **STACKED}), teacher)
    for wrong in (
        CodeSpec(PILED, LISTED, 2),
        CodeSpec("stack", "separate", 2, 1, {"axis": 1, **STACKED}),
        CodeSpec("stack", "mlp", 2, 1, STACKED),
    ):
        with pytest.raises(CodeError, match="along a new first axis"):
            code_for(wrong, teacher)


class _Probabilities(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.flatten(1)[:, :10].softmax(dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "decoder", "kind"),
    [(PILED, LISTED, "probabilities"), (ENCODER, DECODER, "logits")],
)
def test_probabilities_that_are_read_off_are_learned_as_such(
    encoder: str, decoder: str, kind: str, tmp_path: Path
) -> None:
    inputs = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)).numpy()
    spec, out = CodeSpec(encoder, decoder, 2), tmp_path / "out"
    outcome = train_parity(
        _Probabilities(), spec, inputs, out, TrainingOptions(epochs=1), network="linear"
    )
    training = outcome.manifest.parity_training
    assert training is not None
    assert training.recipe["output_kind"] == kind


class OwnNetwork(MLPEncoder):
    """A learned encoder of this package, with another network."""

    name = "own-network"

    def new_network(self) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Unflatten(1, (1, 16)))


def test_a_learned_encoder_is_the_network_that_it_says() -> None:
    code = Code(CodeSpec(f"{__name__}:OwnNetwork", "subtraction", 2), (16,), (3,))
    assert isinstance(CodedNetworks(nn.ModuleList(), code).coders["encoder"], nn.Sequential)


def test_simulations_choose_an_encoder_after_which_the_decoder_can_tell_the_slots() -> None:
    assert Setting(decoder=LISTED).code.encoder == Setting().code.encoder == "stack"
    assert Setting(decoder=DECODER).code.encoder == "sum"
