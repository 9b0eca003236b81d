"""Users' own encoders and decoders are trained as this package's own that say the same."""

from pathlib import Path

import pytest
import torch
from torch import nn

from own_coders import DECODER, ENCODER, LISTED, PILED
from parity_models.codes import CodeSpec
from parity_models.errors import CodeError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.export import export
from parity_models.models.signature import Signature, Tensor
from parity_models.training import TrainingOptions
from parity_models.training.candidates import STACKED, code_for
from parity_models.training.teacher import teacher_of
from parity_models_lab.latency.setting import Setting
from trainings import train_parity

IMAGES = (1, 16, 16)


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


def test_simulations_choose_an_encoder_after_which_the_decoder_can_tell_the_slots() -> None:
    assert Setting(decoder=LISTED).code.encoder == Setting().code.encoder == "stack"
    assert Setting(decoder=DECODER).code.encoder == "sum"
