"""Everything a training run needs to go on after it was cut off, in one safetensors file.

Tensors are the module's, the optimiser's and the best epoch's; the rest is JSON in the file's
header. Nothing is unpickled.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from parity_models.errors import TrainingError

Weights = dict[str, Tensor]
Options = dict[str, str | int | float | bool]
"""What determines a run's result besides chance, by name."""


@dataclass(frozen=True)
class Checkpoint:
    """A training run between two epochs: how far it is and its best epoch's weights."""

    epochs: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_score: float | None = None
    best: Weights | None = None

    def after_epoch(self, module: nn.Module, score: float, seconds: float) -> "Checkpoint":
        """The state one epoch later, with the module's weights as the best if they are.

        A score that is NaN, of a module that diverged, is better than none alone.
        """
        epochs = self.epochs + 1
        if self.best_score is not None and (math.isnan(score) or score < self.best_score):
            return Checkpoint(epochs, seconds, self.best_epoch, self.best_score, self.best)
        best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        return Checkpoint(epochs, seconds, epochs, score, best)


def save_checkpoint(
    path: Path,
    state: Checkpoint,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Options,
) -> None:
    """Write all of it to `path`, replacing the checkpoint before it in one step."""
    tensors: Weights = {}
    for prefix, values in (("module", module.state_dict()), ("best", state.best or {})):
        tensors |= {f"{prefix}/{name}": value for name, value in values.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    run = {
        "epochs": state.epochs,
        "seconds": state.seconds,
        "best_epoch": state.best_epoch,
        "best_score": state.best_score,
        "options": options,
    }
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by save_file: what that leaves where it is killed has a name of chance.
        content = save(
            {name: value.contiguous() for name, value in tensors.items()},
            {"run": json.dumps(run)},
        )
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise TrainingError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Options,
) -> Checkpoint:
    """Read `path` into `module` and `optimizer`, and say how far that run was.

    Raises TrainingError if there is no sound checkpoint or its run had other options.
    """
    if not path.is_file():
        raise TrainingError(f"there is nothing to resume at {path}; run without --resume")
    parts: dict[str, Weights] = {"module": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, "pt") as file:
            run: dict[str, Any] = json.loads(file.metadata()["run"])
            for key in file.keys():  # noqa: SIM118  # it has keys, but cannot be iterated
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
        changed = {
            name: (was, options.get(name))
            for name, was in run["options"].items()
            if was != options.get(name)
        }
        if changed:
            differences = "; ".join(f"{n} {was}, now {now}" for n, (was, now) in changed.items())
            raise TrainingError(
                f"the run at {path} had other options ({differences}); resume with the same "
                "options or run without --resume"
            )
        module.load_state_dict(parts["module"])
        _restore(optimizer, parts["optimizer"])
        return Checkpoint(
            run["epochs"], run["seconds"], run["best_epoch"], run["best_score"], parts["best"]
        )
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"the checkpoint {path} is damaged ({error}); run without --resume"
        ) from error


def _restore(optimizer: torch.optim.Optimizer, values: Weights) -> None:
    state = optimizer.state_dict()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in values.items():
        index, name = key.split("/")
        like = weights[int(index)]
        # The fused optimiser walks through memory: moments must be laid out as their weights.
        value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
