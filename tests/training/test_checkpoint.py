"""Training survives interruption, and continues from nothing but its own checkpoint."""

import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from parity_models.bundle.bundle import open_bundle
from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.progress import Callbacks, Progress
from parity_models.training import TrainingOptions, search
from present import some
from trainings import DIGITS, STACK, Train, evaluate, fail_at, train_parity, weights

pytestmark = pytest.mark.slow

TWICE = TrainingOptions(epochs=2)


def test_a_run_is_resumed_with_the_network_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured again, networks may take other times, and another might be proposed."""
    monkeypatch.setattr(search, "measure_networks", lambda *_: {"linear": 0.5})
    rows = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    stop = Callbacks(on_progress=fail_at(1 / 2, KeyboardInterrupt()))
    model, out = nn.Linear(6, 3), tmp_path / "bundle"
    assert train_parity(model, STACK, rows, out, callbacks=stop, options=TWICE).fitted.resumable
    monkeypatch.setattr(search, "measure_networks", lambda *_: {"mlp": 0.5})
    resumed = train_parity(model, STACK, rows, out, options=replace(TWICE, resume=True))
    assert (resumed.manifest.parity[0].network, resumed.fitted.epochs) == ("linear", 2)


@pytest.mark.parametrize("network", ["mlp", "resnet-small@0.25"])
def test_run_that_was_cut_off_continues_alike(train: Train, tmp_path: Path, network: str) -> None:
    with pytest.raises(MemoryError):
        train(network=network, epochs=3, report=fail_at(2 / 3, MemoryError()))
    assert not (tmp_path / "bundle").exists()
    with safe_open(tmp_path / "bundle.checkpoint", "pt") as file:
        run = msgspec.json.decode(file.metadata()["run"])
    assert (run["epochs"], run["options"]["code"]) == (2, str(STACK))
    reports: list[Progress] = []
    resumed = train(network=network, epochs=3, resume=True, report=reports.append)
    assert {each.said for each in reports if each.work == "training"} == {"epoch 3"}
    assert weights(resumed) == weights(train(network=network, epochs=3, name="uninterrupted"))
    assert not (tmp_path / "bundle.checkpoint").exists()


def test_an_interrupt_leaves_the_best_so_far_and_can_be_resumed(train: Train) -> None:
    stopped = train(epochs=100, report=fail_at(20 / 100, KeyboardInterrupt()))
    assert stopped.fitted.resumable
    assert stopped.fitted.epochs == 20
    assert "interrupted: this is the best so far; resume the run to continue" in str(stopped)
    accuracy = evaluate(open_bundle(stopped.path), DIGITS.test.inputs, DIGITS.test.labels)
    assert some(accuracy.degraded_accuracy) > 0.7
    fitted = train(epochs=22, resume=True).fitted
    assert (fitted.interrupted, fitted.resumable, fitted.epochs) == (False, False, 22)


def test_ctrl_c_waits_for_the_end_of_a_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within autocast's own enter or exit it would leave autocast on, and exports in bfloat16."""
    whole: list[bool] = []
    step = torch.optim.Optimizer.zero_grad

    def interrupted(self: torch.optim.Optimizer) -> None:
        whole.append(False)
        if len(whole) == 30:
            signal.raise_signal(signal.SIGINT)
        step(self)
        whole[-1] = True

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", interrupted)
    stopped = train(epochs=1000)
    assert stopped.fitted.interrupted
    assert (len(whole), all(whole)) == (30, True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_missing_damaged_or_foreign_checkpoint_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(epochs=4, resume=True)
    with pytest.raises(MemoryError):
        train(epochs=4, report=fail_at(1 / 4, MemoryError()))
    with pytest.raises(TrainingError, match="seed 0, now 1"):
        train(epochs=4, resume=True, seed=1)
    with pytest.raises(TrainingError, match="code stack"):
        train(CodeSpec("sum", "subtraction", 2), epochs=4, resume=True)
    checkpoint = tmp_path / "bundle.checkpoint"
    content = checkpoint.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 100):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match="damaged"):
            train(epochs=4, resume=True)
