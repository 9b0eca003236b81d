"""Training a deployed model F: labelled queries in, a bundle that holds F out."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.export import export_onnx
from parity_models.models.networks import build_network
from parity_models.models.weights import WEIGHTS, save_weights
from parity_models.tasks import Dataset, Task, score
from parity_models.training.checkpoint import Options
from parity_models.training.queries import mirror, predict
from parity_models.training.recipes import DEPLOYED
from parity_models.training.run import Outcome, Run, Settings


def train_deployed(
    task: Task, dataset: Dataset, network: str, out: Path, settings: Settings | None = None
) -> Outcome:
    """Train the network called `network` for `task` on its `dataset`, as a deployed model.

    Writes a bundle to `out`: the model as ONNX and its weights, which parity models are trained
    against. Raises TrainingError for settings that cannot work and BundleError if `out` is no
    place for a bundle.
    """
    run = Run(out, settings or Settings(), task.name, dataset.train.inputs)
    module = run.build(lambda: build_network(network, task.input_shape, task.output_shape))
    recipe = DEPLOYED[network]
    options: Options = {"network": network, **recipe.options}
    steps = recipe.steps_per_epoch(len(dataset.train))
    problem = _Classification(module, task, dataset, steps, recipe.mirror and task.flips)
    fitted = run.fit(problem, recipe, options)
    bundle = write_bundle(
        out,
        deployed=NewModel(export_onnx(module, task.input_shape), network),
        deployed_training=run.record(fitted, options),
        files={WEIGHTS: save_weights(module)},
    )
    return run.end(bundle, fitted)


class _Classification:
    """Fitting a module to labels by cross-entropy, scored by the task's metric."""

    def __init__(
        self, module: nn.Module, task: Task, dataset: Dataset, steps: int, mirrored: bool
    ) -> None:
        self.module = module
        self.steps = steps
        self._metric = task.metric
        self._mirrored = mirrored
        self._device = next(module.parameters()).device
        self._inputs = torch.from_numpy(dataset.train.inputs).to(self._device)
        self._labels = torch.from_numpy(dataset.train.labels).to(self._device)
        self._held_out = torch.from_numpy(dataset.validation.inputs).to(self._device)
        self._held_out_labels = dataset.validation.labels

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        size = len(self._inputs)
        order = torch.randperm(size, generator=generator).to(self._device)
        coins = (torch.rand(size, generator=generator) < 0.5).to(self._device)
        for rows in order.tensor_split(self.steps):
            queries = self._inputs[rows]
            if self._mirrored:
                queries = mirror(queries, coins[rows])
            yield functional.cross_entropy(self.module(queries), self._labels[rows])

    def score(self) -> float:
        outputs = predict(self.module, self._held_out).cpu().numpy()
        return score(self._metric, outputs, self._held_out_labels)
