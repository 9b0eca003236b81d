"""The options of commands that train."""

from pathlib import Path
from typing import Annotated

from parity_models.cli.flags import Without
from parity_models.options import Option
from parity_models.training import TrainingOptions

Out = Annotated[Path, Option("The bundle to write.", metavar="BUNDLE")]
Model = Annotated[Path, Option("The deployed model: an ONNX file, or a bundle.", metavar="MODEL")]
Inputs = Annotated[
    Path, Option("Queries to learn from, without labels: an .npy or .npz file.", metavar="FILE")
]
Training = Annotated[TrainingOptions, Without("hflip", "seed", "device")]
