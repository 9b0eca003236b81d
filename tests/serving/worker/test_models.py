"""A worker's models are warm before it says that it is there."""

import subprocess
import sys
from pathlib import Path

import pytest

from onnx_models import linear_model

pytestmark = pytest.mark.slow

CANCELS = """
import os
import sys
from pathlib import Path

import onnxruntime

from parity_models_lab.processes import resident
from parity_models.models.onnx_model import FATAL_ONLY, OnnxModel
from parity_models.serving.worker.models import warm_model

model = warm_model(OnnxModel(Path(sys.argv[1])), "it")
before = resident(os.getpid())
options = onnxruntime.RunOptions()
options.terminate = True
options.log_severity_level = FATAL_ONLY
try:
    model(model.signature.largest.input.zeros(1), options)
except Exception:
    print(resident(os.getpid()) - before)
"""


def test_the_first_unit_that_is_cancelled_takes_no_memory_that_stays(tmp_path: Path) -> None:
    linear_model(tmp_path / "model.onnx", (32,), (8,))
    command = [sys.executable, "-c", CANCELS, str(tmp_path / "model.onnx")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(said.stdout) < 2**20
