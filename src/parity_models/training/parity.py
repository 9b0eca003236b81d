"""Training parity models: a deployed model F and unlabelled queries in, a bundle of both out.

Targets are F's own predictions, so labels are never needed; those of a validation set, where
there are any, only say how right reconstructions are.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from parity_models.codes import Code, CodeSpec
from parity_models.codes.encoders import GRIDS
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.export import export_onnx
from parity_models.models.networks import build_network
from parity_models.models.weights import WEIGHTS, load_deployed
from parity_models.tasks import Split
from parity_models.training.checkpoint import Options
from parity_models.training.device import place
from parity_models.training.distillation import SQUARED_ERROR, TEMPERATURE
from parity_models.training.inputs import check_inputs, hold_out
from parity_models.training.recipes import PARITY
from parity_models.training.reconstruction import Reconstruction, Validation
from parity_models.training.run import Outcome, Run, Settings


def train_parity(
    deployed: Bundle,
    spec: CodeSpec,
    inputs: NDArray[np.float32],
    out: Path,
    settings: Settings | None = None,
    *,
    network: str | None = None,
    validation: Split | None = None,
    metric: str = "top-1",
    mirrored: bool = False,
) -> Outcome:
    """Train the r parity models of the code `spec` for the deployed model of a bundle.

    `inputs` (n, *query_shape) need no labels. The best epoch is the one with the best A_d under
    `metric` on `validation`; without it, on inputs held out, where F's own predictions count as
    right. `network` is by default the deployed model's. `mirrored` allows to turn queries left
    to right. Writes a bundle with all models to `out`. Raises CodeError for a code that cannot
    be, DataError for inputs that do not fit, TrainingError for settings that cannot work and
    BundleError if `out` is no place for a bundle or `deployed` lacks the weights of F.
    """
    manifest = deployed.manifest
    code = Code(spec, manifest.deployed.input.shape, manifest.deployed.output.shape)
    check_inputs(inputs, code.query_shape, "training inputs", code.k)
    network = network or manifest.deployed.network
    task = manifest.deployed_training.task if manifest.deployed_training else "unknown"
    run = Run(out, settings or Settings(), task, inputs)
    model = place(load_deployed(deployed), run.device)
    module = run.build(lambda: _build(network, code, model, manifest.deployed.network == network))
    recipe = PARITY[network]
    options: Options = {
        "deployed": manifest.deployed.sha256,
        "code": str(spec),
        "network": network,
        "temperature": TEMPERATURE,
        "squared_error": SQUARED_ERROR,
        **recipe.options,
    }
    if validation is None:
        inputs, validation = hold_out(inputs, model, run.device)
        check_inputs(inputs, code.query_shape, "training inputs", code.k)
    check_inputs(validation.inputs, code.query_shape, "validation inputs", code.k)
    problem = Reconstruction(
        module,
        code,
        model,
        torch.from_numpy(inputs).to(run.device),
        steps=recipe.steps_per_epoch(len(inputs) // code.k),
        mirrored=mirrored and recipe.mirror,
        validation=Validation(code, model, validation, metric, run.device),
    )
    fitted = run.fit(problem, recipe, options)
    bundle = write_bundle(
        out,
        deployed=deployed.stored(manifest.deployed),
        parity=[NewModel(export_onnx(one, code.parity_shape), network) for one in module],
        backup=None if manifest.backup is None else deployed.stored(manifest.backup),
        code=spec,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=run.record(fitted, options),
        backup_training=manifest.backup_training,
        files={WEIGHTS: deployed.path / WEIGHTS},
    )
    return run.end(bundle, fitted)


def _build(network: str, code: Code, deployed: nn.Module, alike: bool) -> nn.ModuleList:
    """r parity models, which start from the deployed model's weights if they are `alike`."""
    # Separate outputs of tiled images come each from its own part of the image.
    tiled = (code.spec.encoder, code.spec.decoder) == ("concatenation", "separate")
    grid = GRIDS[code.k] if tiled else (1, 1)
    models = nn.ModuleList(
        build_network(network, code.parity_shape, code.parity_output_shape, grid)
        for _ in range(code.r)
    )
    if alike:
        theirs = deployed.state_dict()
        for model in models:
            own = model.state_dict()
            model.load_state_dict(
                {
                    name: theirs[name] if theirs[name].shape == value.shape else value
                    for name, value in own.items()
                }
            )
    return models
