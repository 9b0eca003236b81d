"""A bundle with all that one can hold, and how it is forged."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from parity_models.bundle.bundle import Accuracy, Bundle, NewModel, Training, write_bundle
from parity_models.codes import CodeSpec

CODE = CodeSpec("stack", "separate", 2, 1, {"axis": 0})


TRAINING = Training("digits", 1200, "0" * 64, 7, 3, 1.5, "cpu", {"rate": 0.1, "flips": True})


ACCURACY = Accuracy("top-1", 0.9, 0.8, {"0.1": 0.89}, 0.82, 400, (0.8,))


FILES = [
    "manifest.json",
    "deployed.onnx",
    "parity-0.onnx",
    "backup.onnx",
    "deployed.safetensors",
    "golden.msgpack",
]


def write(path: Path, models: Path) -> Bundle:
    """Write it with the models that the fixture of this name makes."""
    return write_bundle(
        path,
        deployed=NewModel(models / "deployed.onnx", "linear"),
        parity=[NewModel((models / "parity.onnx").read_bytes(), "linear")],
        backup=NewModel(models / "deployed.onnx", "small"),
        code=CODE,
        name="clothes",
        deployed_training=TRAINING,
        parity_training=TRAINING,
        backup_training=TRAINING,
        accuracy=ACCURACY,
        files={"deployed.safetensors": b"weights"},
    )


def tamper(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's content and sign it again."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    digest = sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
    path.write_bytes(msgspec.json.encode({**content, "digest": digest}))
