"""Models of the digits: one from elsewhere, with `parm` beside it, and one that is trained here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Here
from onnx_models import linear_model
from parity_models.bundle import inference_time
from parity_models.codes import CodeSpec
from parity_models.progress import Callbacks, OnProgress
from parity_models.training import Trained, TrainingOptions
from parity_models.training.network_plans import ParityPlan, parity_network
from parity_models_lab.deployed import train_deployed
from parity_models_lab.tasks import find_task
from trainings import DIGITS, STACK, Parm, Train, train_parity


@pytest.fixture(autouse=True, scope="module")
def _brief_measurements() -> Iterator[None]:
    """Measure the times of models briefly: tests here compare networks that are far apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_time, "SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a least-squares model of the digits, inputs, and a labelled test set."""
    folder = tmp_path_factory.mktemp("digits")
    train, test = DIGITS.train, DIGITS.test
    features = train.inputs.reshape(len(train), -1)
    weights = np.linalg.lstsq(features, np.eye(10, dtype=np.float32)[train.labels], rcond=None)[0]
    linear_model(folder / "model.onnx", (1, 8, 8), (10,), 5 * weights.astype(np.float32))
    np.save(folder / "inputs.npy", train.inputs)
    np.save(folder / "test.npy", test.inputs)
    np.save(folder / "labels.npy", test.labels)
    return folder


@pytest.fixture
def parm(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parm_here: Here) -> Parm:
    """Runs `parm` in this process, in a new folder: gives stdout, or the error of code 2."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: str, code: int = 0) -> str:
        done = parm_here(*arguments.format(digits=digits).split())
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr.splitlines()[-1]

    return run


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An MLP that was trained here; tests only read it."""
    out = tmp_path_factory.mktemp("deployed") / "mlp"
    return train_deployed(find_task("digits"), DIGITS, "mlp", out, TrainingOptions(epochs=40))


@pytest.fixture
def train(deployed: Trained, tmp_path: Path) -> Train:
    """Trains a parity model for it into tmp_path / name."""

    def run(
        spec: CodeSpec = STACK,
        name: str = "bundle",
        network: str = "mlp",
        plan: ParityPlan = parity_network,
        report: OnProgress | None = None,
        **options: Any,
    ) -> Trained:
        return train_parity(
            deployed,
            spec,
            DIGITS.train.inputs,
            tmp_path / name,
            TrainingOptions(**options),
            network=network,
            validation=DIGITS.validation,
            plan=plan,
            callbacks=Callbacks(on_progress=report) if report else None,
        )

    return run
