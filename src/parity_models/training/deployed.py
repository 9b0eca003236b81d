"""Training a deployed model F: labelled queries in, a bundle that holds F out."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.export import export, floats
from parity_models.models.weights import WEIGHTS, save_weights
from parity_models.tasks import METRICS, Dataset, Task, check_dataset, score
from parity_models.tasks.metrics import PredictionKind
from parity_models.tasks.user_data import check_varied
from parity_models.training.checkpoint import Options
from parity_models.training.device import run_reduced
from parity_models.training.device_queries import mirror, mirror_boxes, predict
from parity_models.training.own_network import named_network
from parity_models.training.recipes import deployed_recipe, recipe_for
from parity_models.training.run import Outcome, Run, Settings

LOSSES: dict[PredictionKind, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": functional.cross_entropy,
    "boxes": partial(functional.smooth_l1_loss, beta=0.05),
    "values": functional.mse_loss,
}
"""The loss for each kind of prediction. Boxes are in shares of an image: an edge that is wrong by
more than a twentieth of it weighs by its distance instead of its square."""


def train_deployed(
    task: Task,
    dataset: Dataset,
    network: str,
    out: Path,
    settings: Settings | None = None,
    *,
    recipe: str = "usual",
) -> Outcome:
    """Train the network called `network` for `task` on its `dataset`, as a deployed model.

    `network` may be a `package.module:function` of the user's (see `own_network.Factory`). With
    the `recipe` "published" it learns with the paper's optimiser and sees nothing mirrored.
    Writes a bundle to `out`: the model as ONNX and its weights, which parity models are trained
    against. Raises DataError for inputs or labels that do not fit, TrainingError for settings
    that cannot work and BundleError if `out` is no place for a bundle.
    """
    shapes = dataset.input_shape, dataset.output_shape
    check_dataset(task.metric, dataset)
    check_varied(dataset.train.inputs, "training inputs")
    run = Run(out, settings or Settings(), task.name, dataset.train.inputs)
    named = named_network(network)
    module = run.build(lambda: named.build(*shapes, (1, 1)))
    usual = recipe_for(named.kind, "deployed", dataset.input_shape)
    chosen = deployed_recipe(usual, recipe)
    mirrored = chosen.mirror and task.flips
    options: Options = {"network": network, **chosen.options, "mirror": mirrored}
    steps = chosen.steps_per_epoch(len(dataset.train))
    problem = _Labelled(module, task, dataset, steps, mirrored)
    fitted = run.fit(problem, chosen, options)
    bundle = write_bundle(
        out,
        deployed=NewModel(export(module, [floats(dataset.input_shape)]), network),
        deployed_training=run.record(fitted, options),
        files={WEIGHTS: save_weights(module)},
    )
    return run.end(bundle, fitted)


class _Labelled:
    """Fitting a module to labels, scored by the task's metric."""

    def __init__(
        self, module: nn.Module, task: Task, dataset: Dataset, steps: int, mirrored: bool
    ) -> None:
        self.module = module
        self.steps = steps
        self._metric = task.metric
        self._mirrored = mirrored
        self._device = next(module.parameters()).device
        self._inputs = torch.from_numpy(dataset.train.inputs).to(self._device)
        kind = np.int64 if METRICS[task.metric].kind == "classes" else np.float32
        self._labels = torch.from_numpy(dataset.train.labels.astype(kind)).to(self._device)
        self._held_out = torch.from_numpy(dataset.validation.inputs).to(self._device)
        self._held_out_labels = dataset.validation.labels

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        size, kind = len(self._inputs), METRICS[self._metric].kind
        order = torch.randperm(size, generator=generator).to(self._device)
        coins = (torch.rand(size, generator=generator) < 0.5).to(self._device)
        for rows in order.tensor_split(self.steps):
            queries, labels = self._inputs[rows], self._labels[rows]
            if self._mirrored:
                queries = mirror(queries, coins[rows])
                if kind == "boxes":
                    labels = torch.where(coins[rows, None], mirror_boxes(labels), labels)
            yield LOSSES[kind](run_reduced(self.module, queries), labels)

    def score(self) -> float:
        outputs = predict(self.module, self._held_out).cpu().numpy()
        return score(self._metric, outputs, self._held_out_labels)
