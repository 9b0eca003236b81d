"""Training an approximate backup: a cheaper network that imitates a deployed model F.

Its targets are F's own predictions, so labels are never needed. (The baseline that coded
resilience is compared with: Kosaian et al., SOSP 2019, section 5.2.6.)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.export import export_onnx
from parity_models.models.inference_time import measure_models
from parity_models.models.networks import build_network
from parity_models.models.weights import has_weights
from parity_models.tasks import METRICS, Split, score
from parity_models.tasks.unlabelled import choose_metric
from parity_models.tasks.user_data import check_queries
from parity_models.training.checkpoint import Options
from parity_models.training.device import place, run_reduced
from parity_models.training.distillation import (
    SQUARED_ERROR,
    TEMPERATURE,
    deviations,
    difference,
    squared_error,
)
from parity_models.training.envelope import fit_envelope
from parity_models.training.inputs import check_inputs, check_rows_apart, check_telling, hold_out
from parity_models.training.queries import mirror, predict, predict_both_ways
from parity_models.training.recipes import DEPLOYED, recipe_for
from parity_models.training.run import Outcome, Run, Settings
from parity_models.training.scaling import channel_axis, plain, scaled
from parity_models.training.teacher import load_teacher


def train_backup(
    bundle: Bundle,
    network: str,
    inputs: NDArray[np.float32],
    out: Path,
    settings: Settings | None = None,
    *,
    validation: Split | None = None,
    metric: str | None = None,
    mirrored: bool = False,
) -> Outcome:
    """Train the network called `network` as a backup for the deployed model of `bundle`.

    `inputs` (n, *query_shape) need no labels. The best epoch is chosen by `metric` (by default
    what suits the shape of predictions) on `validation`; without it, on inputs held out, where
    F's own predictions count as right. `mirrored` allows to turn queries left to right. Writes
    to `out` all that `bundle` holds, and the backup. Raises DataError for inputs that do not fit,
    TrainingError for settings that cannot work and BundleError if `out` is no place for a bundle.
    """
    manifest = bundle.manifest
    query_shape, output_shape = manifest.deployed.input.shape, manifest.deployed.output.shape
    metric = choose_metric(metric, output_shape)
    check_inputs(inputs, query_shape, 1 if validation else 2)
    if validation is not None:
        check_queries(validation.inputs, query_shape, "validation inputs")
    task = manifest.deployed_training.task if manifest.deployed_training else "own"
    settings = settings or Settings()
    run = Run(out, settings, task, inputs)
    model = place(load_teacher(bundle, settings.predicted), run.device)
    check_rows_apart(model, inputs, run.device)
    module = run.build(lambda: build_network(network, query_shape, output_shape))
    recipe = recipe_for(DEPLOYED, network, query_shape)
    mirrored = mirrored and recipe.mirror
    options: Options = {
        "deployed": manifest.deployed.sha256,
        "network": network,
        "metric": metric,
        "temperature": TEMPERATURE,
        "squared_error": SQUARED_ERROR,
        **recipe.options,
        "mirror": mirrored,
        "scaled": not has_weights(bundle),
    }
    if validation is None:
        inputs, validation = hold_out(inputs, model, run.device, metric, 1)
    problem = _Imitation(
        module,
        model,
        torch.from_numpy(inputs).to(run.device),
        steps=recipe.steps_per_epoch(len(inputs)),
        mirrored=mirrored,
        validation=validation,
        metric=metric,
        foreign=not has_weights(bundle),
    )
    fitted = run.fit(problem, recipe, options)
    deployed = bundle.stored(manifest.deployed)
    parity = [bundle.stored(parity) for parity in manifest.parity]
    backup = NewModel(export_onnx(plain(problem.module, query_shape), query_shape), network)
    written = write_bundle(
        out,
        deployed=deployed,
        parity=parity,
        coders={name: bundle.stored(coder) for name, coder in manifest.coders.items()},
        backup=backup,
        code=manifest.code,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=manifest.parity_training,
        backup_training=run.record(fitted, options),
        inference_times=measure_models(deployed, parity, backup),
        # That of a parity model, to which more depends on it, stays.
        envelope=bundle.envelope()
        or fit_envelope(
            inputs, validation.inputs, problem.predictions.cpu().numpy(), mirrored=mirrored
        ),
        files={stored.file: bundle.path / stored.file for stored in manifest.files},
    )
    return run.end(written, fitted)


class _Imitation:
    """Fitting a module to what F predicts for `inputs`, scored on queries it does not see."""

    def __init__(
        self,
        module: nn.Module,
        deployed: nn.Module,
        inputs: Tensor,
        *,
        steps: int,
        mirrored: bool,
        validation: Split,
        metric: str,
        foreign: bool,
    ) -> None:
        self.steps = steps
        self._inputs = inputs
        self._mirrored = mirrored
        self._predictions = predict_both_ways(deployed, inputs, mirrored)
        check_telling(self._predictions[0])
        self._held_out = torch.from_numpy(validation.inputs).to(inputs.device)
        self._labels = validation.labels
        self._metric = metric
        self._kind = METRICS[metric].kind
        self._scale = deviations(self._predictions)
        self.module = module
        if foreign:
            targets = None if self._kind == "classes" else self._predictions[0]
            self.module = scaled(module, inputs, targets, channel_axis(tuple(inputs.shape[1:])))

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        size, device = len(self._inputs), self._inputs.device
        order = torch.randperm(size, generator=generator).to(device)
        ways = torch.randint(len(self._predictions), (size,), generator=generator).to(device)
        for rows in order.tensor_split(self.steps):
            queries, way = self._inputs[rows], ways[rows]
            if self._mirrored:
                queries = mirror(queries, way == 1)
            outputs, targets = run_reduced(self.module, queries), self._predictions[way, rows]
            loss = difference(self._kind, outputs, targets, self._scale)
            yield loss + squared_error(outputs, targets) if self._kind == "classes" else loss

    @property
    def predictions(self) -> Tensor:
        """F's predictions (n, *output_shape) for the inputs, as they are."""
        return self._predictions[0]

    def score(self) -> float:
        outputs = predict(self.module, self._held_out).cpu().numpy()
        return score(self._metric, outputs, self._labels)
