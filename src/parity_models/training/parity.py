"""Training parity models: a deployed model F and unlabelled queries in, a bundle of both out.

Targets are F's own predictions, so labels are never needed; those of a validation set, where
there are any, only say how right reconstructions are.
"""

from copy import deepcopy
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from parity_models.codes import Code, Coder, CodeSpec
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.export import export_onnx
from parity_models.models.inference_time import measure_models
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.slotwise import Slotwise
from parity_models.models.weights import WEIGHTS, has_weights
from parity_models.tasks import Split
from parity_models.tasks.unlabelled import choose_metric
from parity_models.tasks.user_data import check_queries
from parity_models.training.checkpoint import Options
from parity_models.training.device import place
from parity_models.training.distillation import SQUARED_ERROR, TEMPERATURE
from parity_models.training.envelope import fit_envelope
from parity_models.training.inputs import check_inputs, check_rows_apart, hold_out
from parity_models.training.learned import CodedNetworks
from parity_models.training.own_network import Factory
from parity_models.training.parity_network import (
    ParityNetwork,
    choose_network,
    parity_network,
)
from parity_models.training.recipes import draw_as_published, parity_recipe
from parity_models.training.reconstruction import Reconstruction, Validation
from parity_models.training.run import Outcome, Run, Settings
from parity_models.training.scaling import plain, unscaled
from parity_models.training.source import Deployed, open_deployed
from parity_models.training.teacher import load_teacher


def train_parity(
    deployed: Deployed,
    spec: CodeSpec,
    inputs: NDArray[np.float32],
    out: Path,
    settings: Settings | None = None,
    *,
    network: str | Factory | None = None,
    validation: Split | None = None,
    metric: str | None = None,
    mirrored: bool = False,
    recipe: str = "distilled",
) -> Outcome:
    """Train the r parity models of the code `spec` for a deployed model.

    `deployed` is a bundle, the path of one or of an ONNX file, or a torch module. `inputs`
    (n, *query_shape) need no labels. The best epoch is the one with the best A_d under `metric`
    (by default what suits the shape of predictions) on `validation`; without it, on inputs held
    out, where F's own predictions count as right. `network` is a name, a `package.module:function`
    or a function that makes one (see `own_network.Factory`); by default the deployed model's
    if its weights are in the bundle, else one chosen for its inference time. `mirrored` allows
    to turn queries left to right. `recipe` "published" trains as the paper does, to compare with.
    Writes a bundle with all models to `out`.

    Raises CodeError for a code that cannot be, DataError for inputs that do not fit, ModelError
    for a model that cannot be deployed, TrainingError for settings that cannot work and
    BundleError if `out` is no place for a bundle.
    """
    settings, inputs = settings or Settings(), np.asarray(inputs)
    with open_deployed(deployed, inputs.shape[1:]) as bundle:
        teacher = (
            deepcopy(deployed).eval()
            if isinstance(deployed, nn.Module)
            else load_teacher(bundle, settings.predicted)
        )
        return _train(
            bundle,
            teacher,
            spec,
            inputs,
            out,
            settings,
            network,
            validation,
            metric,
            mirrored,
            recipe,
        )


def _train(
    deployed: Bundle,
    teacher: nn.Module,
    spec: CodeSpec,
    inputs: NDArray[np.float32],
    out: Path,
    settings: Settings,
    named: str | Factory | None,
    validation: Split | None,
    metric: str | None,
    mirrored: bool,
    style: str,
) -> Outcome:
    manifest = deployed.manifest
    code = Code(spec, manifest.deployed.input.shape, manifest.deployed.output.shape)
    metric = choose_metric(metric, code.output_shape)
    check_inputs(inputs, code.query_shape, code.k if validation else 2 * code.k)
    if validation is not None:
        check_queries(validation.inputs, code.query_shape, "validation inputs", code.k)
    task = manifest.deployed_training.task if manifest.deployed_training else "own"
    run = Run(out, settings, task, inputs)
    named = named or default_network(deployed, code)
    network = parity_network(named, code, published=style == "published")
    recipe = parity_recipe(network.recipe, style, spec)
    mirrored = mirrored and recipe.mirror
    model = place(teacher, run.device)
    check_rows_apart(model, inputs, run.device)
    start = model if recipe.style == "distilled" else None
    started = False

    def build() -> CodedNetworks:
        nonlocal started
        models, started = _build(network, code.r, start)
        return CodedNetworks(models, code)

    module = run.build(build)
    foreign = start is not None and not started and not has_weights(deployed)
    code = module.code
    options: Options = {
        "deployed": manifest.deployed.sha256,
        "code": str(spec),
        "network": network.name,
        "metric": metric,
        "temperature": TEMPERATURE,
        "squared_error": SQUARED_ERROR,
        **recipe.options,
        "mirror": mirrored,
        "scaled": foreign,
    }
    if validation is None:
        inputs, validation = hold_out(inputs, model, run.device, metric, code.k)
    problem = Reconstruction(
        module,
        model,
        torch.from_numpy(inputs).to(run.device),
        steps=recipe.steps_per_epoch(len(inputs) // code.k),
        mirrored=mirrored,
        style=recipe.style,
        foreign=foreign,
        validation=Validation(code.k, model, validation, metric, run.device),
    )
    fitted = run.fit(problem, recipe, options)
    stored = deployed.stored(manifest.deployed)
    parity = [
        NewModel(
            export_onnx(plain(one, code.parity_shape), code.parity_shape),
            network.name,
            slotwise=isinstance(unscaled(one), Slotwise),
        )
        for one in module
    ]
    coders: dict[Coder, NewModel] = {
        name: NewModel(export_onnx(module.coders[name], taken), f"{name} of {spec}")
        for name, (taken, _) in code.network_shapes.items()
    }
    backup = None if manifest.backup is None else deployed.stored(manifest.backup)
    bundle = write_bundle(
        out,
        deployed=stored,
        parity=parity,
        coders=coders,
        backup=backup,
        code=spec,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=run.record(fitted, options),
        backup_training=manifest.backup_training,
        inference_times=measure_models(stored, parity, backup),
        envelope=fit_envelope(
            inputs, validation.inputs, problem.predictions.cpu().numpy(), mirrored=mirrored
        ),
        files={WEIGHTS: deployed.path / WEIGHTS} if has_weights(deployed) else {},
    )
    return run.end(bundle, fitted)


def default_network(deployed: Bundle, code: Code) -> str:
    """The deployed model's network if the bundle holds its weights, to start from, else a chosen
    one."""
    network = deployed.manifest.deployed.network
    ours = has_weights(deployed) and family(network) in NETWORKS
    return network if ours else choose_network(deployed, code)


def _build(
    network: ParityNetwork, r: int, deployed: nn.Module | None
) -> tuple[nn.ModuleList, bool]:
    """r parity models, which start from the deployed model's weights where they are alike, or,
    without it, from random weights as the published ones do; and whether there are such weights."""
    models = nn.ModuleList(network.build() for _ in range(r))
    if deployed is None:
        if family(network.name) in NETWORKS:  # whoever gives one of their own draws it as they like
            models.apply(draw_as_published)
        return models, False
    started = False
    places = prod(network.places)
    theirs = deployed.state_dict()
    for j, model in enumerate(models):
        if isinstance(model, Slotwise) and type(model.network) is type(deployed):
            # Models that start alike stay alike, and their mean is no better than each.
            model.start_from(deployed, first_layer=j == 0)
            started = True
        if type(model) is not type(deployed):
            continue
        own = model.state_dict()
        for name, weights in theirs.items():
            mine = own.get(name)
            if mine is None:  # of the same class, but with fewer layers
                continue
            if mine.ndim == weights.ndim == 2 and mine.shape[1] == places * weights.shape[1]:
                # The head begins with the weights for the mean of the places.
                weights = weights.repeat_interleave(places, 1) / places
            if mine.shape == weights.shape:
                own[name] = weights
                started = True
        model.load_state_dict(own)
    return models, started
