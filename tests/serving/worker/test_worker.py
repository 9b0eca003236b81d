"""Units run on warm models, and are cancelled where they wait or compute."""

import time
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest

from onnx_models import linear_model, moody_model
from parity_models.bundle.onnx_model import OnnxModel, PinnedModel
from parity_models.errors import ModelError
from parity_models.serving.worker.wire import AssignedModel, Failed, Finished, Unit
from parity_models.serving.worker.worker import Runner, load
from parity_models.simulation.emulation import Constant, FaultPlan, Slowdowns

ROW = np.ones(4, np.float32).tobytes()
DELAY = 0.5


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    linear_model(tmp_path / "m.onnx", (4,), (2,))
    return Runner({"deployed": OnnxModel(tmp_path / "m.onnx")})


@pytest.mark.parametrize(
    ("unit", "rows", "why"),
    [
        (Unit(1, "parity-0", 1), ROW, "does not run 'parity-0'"),
        (Unit(1, "deployed", 1), ROW[:-1], "15 bytes, where 1 rows"),
        (Unit(1, "deployed", 2), ROW, "16 bytes, where 2 rows"),
        (Unit(1, "deployed", 1, (3,)), ROW, ""),
    ],
)
def test_a_unit_that_does_not_fit_fails(runner: Runner, unit: Unit, rows: bytes, why: str) -> None:
    report, outputs = runner.run(unit, rows)
    assert isinstance(report, Failed)
    assert why in report.detail
    assert outputs == b""
    assert isinstance(runner.run(Unit(2, "deployed", 1), ROW)[0], Finished)


def test_a_cancelled_unit_waits_no_more(runner: Runner) -> None:
    delayed = Slowdowns(0.0, 3600.0, Constant(DELAY))
    plan = FaultPlan(service_time=Constant(3600.0), slowdowns=delayed)
    runner.inject(plan, 0, time.monotonic() - 3601)
    reports: list[Any] = []
    began = time.monotonic()
    thread = Thread(target=lambda: reports.append(runner.run(Unit(1, "deployed", 1), ROW)))
    thread.start()
    runner.cancel(1)
    thread.join()
    assert reports == [(Failed(1, "cancelled"), b"")]
    assert time.monotonic() - began >= DELAY, "a delay that is a fault stays"
    runner.inject(FaultPlan(), 0, 0.0)
    assert isinstance(runner.run(Unit(2, "deployed", 1), ROW)[0], Finished)


def test_a_worker_loads_only_what_it_was_assigned(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    sha256 = PinnedModel.of(tmp_path / "m.onnx").sha256
    with (tmp_path / "m.onnx").open("rb") as file:
        good = AssignedModel(file.fileno(), sha256, "deployed (m.onnx)")
        for _ in range(2):
            assert len(load(good).signature.inputs) == 1
        with pytest.raises(ModelError, match=r"deployed \(m.onnx\) was changed since"):
            load(msgspec.structs.replace(good, sha256="0" * 64))
