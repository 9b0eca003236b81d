"""Training parity models: a deployed model F and unlabelled queries in, a bundle of both out.

Targets are F's own predictions, so labels are never needed; those of a validation set, where
there are any, only say how right reconstructions are.
"""

from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from parity_models.codes import Code, CoderKind, CodeSpec
from parity_models.models.bundle import Bundle, NewModel, Training, write_bundle
from parity_models.models.bundle_fit import is_slot
from parity_models.models.export import export, floats
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.slotwise import Slotwise
from parity_models.models.networks.stacked import Stacked, copy_weights
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.models.weights import WEIGHTS, has_weights
from parity_models.tasks import Split
from parity_models.tasks.output_kind import OutputKind
from parity_models.tasks.unlabelled import choose_metric
from parity_models.training.checkpoint import Options
from parity_models.training.choose_network import choose_network
from parity_models.training.device import place
from parity_models.training.distillation import SQUARED_ERROR, TEMPERATURE
from parity_models.training.inputs import TRIED, check_rows_apart, check_splits
from parity_models.training.learned import CodedNetworks
from parity_models.training.lessons import Lessons, envelope_of, lessons_of
from parity_models.training.likeness import answering
from parity_models.training.own_network import Factory
from parity_models.training.parity_network import ParityNetwork, parity_network
from parity_models.training.ranked import KnownBackup, backups_of, ranked
from parity_models.training.recipes import Recipe, draw_as_published, parity_recipe
from parity_models.training.reconstruction import Reconstruction
from parity_models.training.rows import on_device
from parity_models.training.run import Outcome, Run, Settings
from parity_models.training.scaling import one_slot, plain, unscaled
from parity_models.training.source import Deployed, open_deployed
from parity_models.training.subject import subject_of
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
    output_kind: str | None = None,
    mirrored: bool = False,
    recipe: str = "distilled",
) -> Outcome:
    """Train the r parity models of the code `spec` for a deployed model.

    `deployed` is a bundle, the path of one or of an ONNX file, or a torch module. `inputs`
    (n, *query_shape) need no labels. The best epoch is the one with the best A_d under `metric` on
    `validation`; without it, on inputs held out, where F's own predictions count as right.
    `output_kind` says what predictions are; metric and kind are by default what suits the
    predictions (see `choose_output_kind`). `network` is a name, a `package.module:function`
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
        shapes = bundle.manifest.deployed
        code = Code(spec, shapes.input.shape, shapes.output.shape)
        subject = subject_of(bundle)
        choose_metric(metric, code.output_shape)
        check_splits(inputs, validation, subject, code.k)
        run = Run(out, settings, bundle.manifest.task, inputs)
        chosen = network or default_network(bundle, code)
        plan = parity_network(chosen, code, published=recipe == "published")
        how = parity_recipe(plan.recipe, recipe, code)
        model = place(_teacher(deployed, bundle, settings), run.device)
        check_rows_apart(model, on_device(inputs[:TRIED], subject, run.device))
        start = model if how.style == "distilled" else None
        module, started = _built_by(run, plan, code, start)
        lessons = lessons_of(
            model,
            subject,
            inputs,
            validation,
            run.device,
            metric=metric,
            output_kind=output_kind,
            mirrored=mirrored and how.mirror,
            least=code.k,
        )
        lessons = decodable(lessons, code)
        foreign = start is not None and not started and not has_weights(bundle)
        return _train(bundle, module, lessons, run, plan.name, how, foreign)


def _teacher(deployed: Deployed, bundle: Bundle, settings: Settings) -> nn.Module:
    if isinstance(deployed, nn.Module):
        return deepcopy(deployed).eval()
    return load_teacher(bundle, settings.predicted)


def decodable(lessons: Lessons, code: Code) -> Lessons:
    """`lessons` as the models of `code` can learn them.

    A decoder that does not read predictions off computes with them. So they are learned as F gives
    them, and parity models are served without a softmax or a normalisation.
    """
    if code.decoder.reads_off:
        return lessons
    plainly: dict[OutputKind, OutputKind] = {"probabilities": "logits", "embeddings": "numbers"}
    return lessons.learned_as(plainly.get(lessons.output_kind, lessons.output_kind))


def _built_by(
    run: Run, network: ParityNetwork, code: Code, start: nn.Module | None
) -> tuple[CodedNetworks, bool]:
    """The networks of the code, and whether they start from the weights of `start`."""
    started = False

    def build() -> CodedNetworks:
        nonlocal started
        models, started = build_models(network, code.r, start)
        return CodedNetworks(models, code)

    return run.build(build), started


def _train(
    deployed: Bundle,
    module: CodedNetworks,
    lessons: Lessons,
    run: Run,
    network: str,
    recipe: Recipe,
    foreign: bool,
) -> Outcome:
    code = module.code
    options: Options = {
        "deployed": deployed.manifest.deployed.sha256,
        "code": str(code.spec),
        "network": network,
        "metric": lessons.metric,
        "output_kind": lessons.output_kind,
        "temperature": TEMPERATURE,
        "squared_error": SQUARED_ERROR,
        **recipe.options,
        "mirror": lessons.mirrored,
        "scaled": foreign,
    }
    problem = Reconstruction(
        module,
        lessons,
        steps=recipe.steps_per_epoch(len(lessons.inputs) // code.k),
        style=recipe.style,
        foreign=foreign,
    )
    fitted = run.fit(problem, recipe, options)
    made = exported_parity(module, network, lessons.output_kind)
    bundle = with_parity(deployed, run.out, code, made, lessons, run.record(fitted, options))
    return run.end(bundle, fitted)


@dataclass(frozen=True)
class ParityModels:
    """The r parity models of a code, its learned coders, and one slot by itself where parity models
    run on each slot by itself; trained and exported."""

    models: list[NewModel]
    coders: dict[CoderKind, NewModel]
    slot: NewModel | None


def exported_parity(module: CodedNetworks, network: str, kind: OutputKind) -> ParityModels:
    """The trained networks of a code, called `network`, whose answers are of `kind`."""
    code = module.code
    models = [
        NewModel(
            export(answering(plain(one, code.parity_shape), kind), [floats(code.parity_shape)]),
            network,
            slotwise=isinstance(unscaled(one), Slotwise),
        )
        for one in module
    ]
    coders: dict[CoderKind, NewModel] = {
        name: NewModel(export(module.coders[name], [floats(taken)]), f"{name} of {code.spec}")
        for name, (taken, _) in code.network_shapes.items()
    }
    slot = one_slot(next(iter(module)))
    if slot is None:
        return ParityModels(models, coders, None)
    content = export(answering(slot, kind), [floats(code.query_shape)])
    fits = is_slot(code, OnnxModel(models[0].onnx), OnnxModel(content))
    alone = NewModel(content, f"{network}, one slot", slot=True) if fits else None
    return ParityModels(models, coders, alone)


def with_parity(
    deployed: Bundle,
    out: Path,
    code: Code,
    made: ParityModels,
    lessons: Lessons,
    training: Training,
    sizes: Sizes | None = None,
) -> Bundle:
    """Write the deployed model of a bundle to `out`, its own backups, and the parity models; times
    are those of queries of these `sizes`."""
    manifest = deployed.manifest
    stored = deployed.stored(manifest.deployed)
    backups = [each for each in backups_of(deployed) if not each.model.slot]
    if made.slot is not None and not backups:
        backups = [KnownBackup(made.slot)]
    known = ranked(stored, made.models, backups, sizes)
    return write_bundle(
        out,
        deployed=stored,
        parity=made.models,
        coders=made.coders,
        backups=known.backups,
        code=code.spec,
        imitated=manifest.imitated,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=training,
        backup_trainings=known.trainings,
        inference_times=known.times,
        calibration=known.calibration,
        envelope=envelope_of(lessons, subject_of(deployed)),
        files={WEIGHTS: deployed.path / WEIGHTS} if has_weights(deployed) else {},
    )


def default_network(deployed: Bundle, code: Code) -> str:
    """The deployed model's network if the bundle holds its weights, which training then starts
    from; else one that is chosen by its time."""
    network = deployed.manifest.deployed.network
    ours = has_weights(deployed) and family(network) in NETWORKS.names
    return network if ours else choose_network(deployed, code)


def build_models(
    network: ParityNetwork, r: int, deployed: nn.Module | None
) -> tuple[nn.ModuleList, bool]:
    """r parity models, and whether they start from weights of the `deployed` model.

    They do where layers are alike. Without `deployed`, networks of this package start from random
    weights drawn as the paper's code draws them.
    """
    models = nn.ModuleList(network.build() for _ in range(r))
    if deployed is None:
        if (
            family(network.name) in NETWORKS.names
        ):  # whoever gives one of their own draws it as they like
            models.apply(draw_as_published)
        return models, False
    started = False
    places = prod(network.places)
    for j, model in enumerate(models):
        if isinstance(model, Stacked):
            alike = model.start_from(deployed, first=j == 0)
        else:  # the head begins with the weights for the mean of the places
            alike = copy_weights(model, deployed, places)
        started = started or alike
    return models, started
