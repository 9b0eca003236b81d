"""A model's own layers as its backup: proposed, trained, and never worse than untrained."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity_models_lab.networks  # noqa: F401  # registers own-layers
from byte_models import ALIKE, SIGNATURE, contents, exported
from commands import invoke
from onnx_models import output_of
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.networks.network import NamedModule
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.fit import fit
from parity_models.training.recipes import Budget, recipe_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("files") / "deployed"
    model = NewModel(exported(ALIKE["files"]()), "own", signature=SIGNATURE)
    return write_bundle(out, deployed=model)


def test_a_model_of_files_is_backed_by_its_own_layers(deployed: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", content=contents(600))
    command = ["backup", "--from", str(deployed.path), "--network", "own-layers"]
    command += ["--inputs", str(tmp_path / "inputs.npz"), "--epochs", "1"]
    result = invoke(*command, "--out", str(tmp_path / "backed"))
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "backed")
    assert bundle.manifest.backups
    backup = bundle.pinned(bundle.manifest.backups[0]).load()
    rows = contents(300, seed=2)
    said = output_of(OnnxModel(deployed.deployed_path, signature=SIGNATURE), rows)
    answers = output_of(backup, rows)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-4)
    assert (answers.argmax(axis=1) == said.argmax(axis=1)).mean() > 0.9


class Spoilt(NamedModule):
    """Begins with what is right, and learns what is wrong."""

    learned = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Spoiling:
    module = Spoilt()
    steps = 3

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield (self.module.weight - 1).square().sum()

    def score(self) -> float:
        return 1 - abs(self.module.weight.item())


def test_what_training_makes_worse_stays_as_it_began(tmp_path: Path) -> None:
    problem = Spoiling()
    fitted = fit(
        problem,
        recipe_for(None, "deployed", (1,)),
        Budget(epochs=2),
        seed=0,
        checkpoint=tmp_path / "checkpoint",
        options={},
    )
    assert (fitted.score, fitted.best_epoch, fitted.epochs) == (1.0, 0, 2)
    assert problem.module.weight.item() == 0
