"""Training one stand-in for a deployed model, and bundling the two: parity models, or a backup.

Targets are the deployed model's own predictions, so labels are never needed; those of a task only
say how right stand-ins are.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType

from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.judging import Evaluation, GivenInputs
from parity_models.evaluation.tables import inference_table, slowdown
from parity_models.models.bundle import Bundle, Training
from parity_models.models.export import export, floats
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.queried import NO_QUERIES, Queried
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.training.bundling import (
    BackupPart,
    ParityPart,
    backups_of,
    check_place,
    check_room,
    contents_of,
    parity_of,
    write_measured,
)
from parity_models.training.callbacks import Callbacks
from parity_models.training.candidates import STACKED, Candidate, Proposal, code_for
from parity_models.training.device import choose_device, place
from parity_models.training.distillation import distill, envelope_of
from parity_models.training.fit import Fitted
from parity_models.training.networks import Factory, named_network, parity_network, queried_of
from parity_models.training.options import TrainingOptions
from parity_models.training.proposals import SLACK, fits, ladder, propose_named
from parity_models.training.queries import Queries, find_queries
from parity_models.training.recipes import Budget, check_recipe
from parity_models.training.teacher import Model, Teacher, open_teacher, teacher_of

BEST = CodeSpec("stack", "separate", 2)
PUBLISHED = CodeSpec("sum", "subtraction", 2)
"""The codes that parity models are trained for by default, and by the published recipe."""


@dataclass(frozen=True, kw_only=True)
class Trained(Printed, Bundle):
    """The bundle that a training wrote, how the run ended, and how it fares on test queries."""

    fitted: Fitted
    evaluation: Evaluation | None = None

    @property
    def parts(self) -> Sequence[RenderableType]:
        """Tables of accuracy, gates and times, and notes."""
        found = [inference_table(self)] if self.evaluation is None else self.evaluation.parts
        return [*found, *self.gates.parts, *self.notes, *self.ending]

    @property
    def notes(self) -> Iterator[str]:
        """Sentences on what may be wrong with the training."""
        if (slower := slowdown(self)) is not None:
            yield (
                f"warning: a parity model takes {slower:.1f} times as long as the deployed model, "
                "so its instances keep up with less; choose a faster network"
            )
        if self.fitted.diverged:
            yield (
                f"warning: the training diverged in epoch {self.fitted.epochs} and ended there, so "
                "the best epoch has learned little; train again with another seed or network"
            )

    @property
    def ending(self) -> Iterator[str]:
        """Sentences on which epoch was kept, and whether the run was interrupted."""
        fitted = self.fitted
        yield (
            f"{self.path} holds the best epoch, {fitted.best_epoch} of {fitted.epochs} "
            f"({fitted.seconds:.0f} s)"
        )
        if fitted.resumable:
            yield "interrupted: this is the best so far; resume the run to continue"
        elif fitted.interrupted:
            yield "interrupted in the first epoch, so there is nothing to resume"


def parity(
    model: Model,
    inputs: GivenInputs | None = None,
    /,
    *,
    out: Path | str,
    code: CodeSpec | None = None,
    network: str | Factory | None = None,
    recipe: str = "distilled",
    allow_code: Collection[str] = (),
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Any,
) -> Trained:
    """Train the parity models of a code for a deployed model, and bundle the two.

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: Queries, without labels: a file or a folder, an array (n, *query_shape), or an array
            for each input by name. By default those of a task. A tenth each is held out to choose
            the best epoch, to calibrate gates and to measure accuracy.
        out: The folder of the bundle to write.
        code: By default stack and separate, k=2; with the published recipe sum and subtraction.
        network: A name, package.module:name of one's own, or a function that makes networks. By
            default the deployed model's if its weights are in the bundle; else the most capable
            that is not slower than the deployed model.
        recipe: "distilled", the best known here, or "published", as in the paper, to compare with.
        allow_code: Encoders and decoders of one's own that the model's bundle may name.
        callbacks: Called as the training goes on.
        options: All of TrainingOptions at once, in place of some by name.
        **given: Fields of TrainingOptions.

    Returns:
        The bundle of the deployed model, its parity models, and backups that it had. Ctrl-C ends
        training early and writes the best so far; a checkpoint next to `out` lets one resume.

    Raises:
        CodeError: For a code that cannot be.
        DataError: For inputs that do not fit.
        ModelError: For a model that cannot be deployed.
        TrainingError: For a network or recipe that cannot work, and a run that cannot be resumed.
        BundleError: If `out` is no place for a bundle.
        UserError: For options out of range or that contradict each other.
    """
    chosen = gather(TrainingOptions, options, given)
    spec = code or (PUBLISHED if recipe == "published" else BEST)
    check_recipe(recipe, spec)
    check_run(out, chosen)
    with open_teacher(model, inputs, chosen.output, allow_code) as teacher:
        if spec.encoder == "stack" and not spec.encoder_options and not teacher.plain:
            spec = replace(spec, encoder_options=STACKED)
        queries = _queries(teacher, inputs, chosen, spec.k)
        return train(teacher, queries, out, network, spec, chosen, recipe, callbacks=callbacks)


def backup(
    model: Model,
    inputs: GivenInputs | None = None,
    /,
    *,
    out: Path | str,
    network: str | Factory,
    keep: bool = False,
    allow_code: Collection[str] = (),
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Any,
) -> Trained:
    """Train a cheaper network as a backup for a deployed model, and bundle the two.

    (The approximate backup that coded resilience is compared with: Kosaian et al., SOSP 2019,
    section 5.2.6.)

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: As for `parity`.
        out: The folder of the bundle to write; may be the model's.
        network: A name, package.module:name of one's own, or a function that makes networks.
        keep: Keep the backups that the bundle has; by default the new one takes their place.
        allow_code: Encoders and decoders of one's own that the model's bundle may name.
        callbacks: Called as the training goes on.
        options: All of TrainingOptions at once, in place of some by name.
        **given: Fields of TrainingOptions.

    Returns:
        The bundle with all that the given one holds, and the backup.

    Raises:
        DataError, ModelError, TrainingError, BundleError, UserError: As for `parity`; TrainingError
            also for more backups than a bundle may have.
    """
    chosen = gather(TrainingOptions, options, given)
    check_run(out, chosen)
    with open_teacher(model, inputs, chosen.output, allow_code) as teacher:
        held = teacher.bundle.manifest.code
        queries = _queries(teacher, inputs, chosen, 1 if held is None else held.k)
        return train(teacher, queries, out, network, None, chosen, keep=keep, callbacks=callbacks)


def check_run(out: Path | str, options: TrainingOptions) -> None:
    """Raise BundleError if `out` is no place for a bundle, TrainingError for a missing device."""
    check_place(Path(out).resolve())
    choose_device(options.device)


def _queries(
    teacher: Teacher, inputs: GivenInputs | None, options: TrainingOptions, k: int
) -> Queries:
    return find_queries(
        teacher,
        inputs,
        task=options.task,
        data_dir=options.data_dir,
        metric=options.metric,
        hflip=options.hflip,
        k=k,
    )


def train(
    deployed: Teacher | Bundle,
    queries: Queries,
    out: Path | str,
    network: str | Factory | None,
    code: CodeSpec | None,
    options: TrainingOptions,
    style: str = "distilled",
    *,
    keep: bool = False,
    callbacks: Callbacks | None = None,
) -> Trained:
    """Train a stand-in on these `queries`: see `parity`, and without a `code`, `backup`.

    Without queries for calibration there are no gates, and without those for tests no accuracy.
    """
    teacher = deployed if isinstance(deployed, Teacher) else teacher_of(deployed)
    callbacks, out = callbacks or Callbacks(), Path(out).resolve()
    check_place(out)
    if keep:
        check_room(teacher.bundle)
    queries.check(teacher, 1 if code is None else code.k)
    queried = NO_QUERIES if teacher.plain else queried_of(teacher, queries.train)
    sizes = commonest(queries.train, teacher.signature)
    if network is None:
        assert code is not None
        network = _default_network(teacher, code, queried, sizes)
        callbacks.say(f"parity network: {network}")
    began, device = time.monotonic(), choose_device(options.device)
    model = place(teacher.network(callbacks.on_predicted), device)
    name, factory = (network, None) if isinstance(network, str) else (None, network)
    candidate = Candidate(
        Proposal(name or named_network(network).name, code),
        teacher,
        model,
        device,
        seed=options.seed,
        queried=queried,
        style=style,
        factory=factory,
    )
    queries = replace(queries, hflip=queries.hflip and candidate.recipe.mirror)
    data = distill(model, teacher, queries, device, options.output_kind)
    candidate.learn_from(data)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    task = teacher.bundle.manifest.task
    budget = Budget(options.epochs, options.seconds)
    fitted = candidate.fit(
        None if budget == Budget() else budget,
        checkpoint,
        options={"task": task, "inputs": queries.sha256, "seed": options.seed},
        resume=options.resume,
        on_progress=callbacks.on_training,
        began=began,
    )
    training = training_of(candidate, queries, task, options.seed)
    contents = _contents(teacher, candidate, training, sizes, keep=keep)
    bundle, evaluation = write_measured(
        out, contents, queries, data.metric, on_measured=callbacks.on_measured
    )
    if not fitted.interrupted:
        checkpoint.unlink(missing_ok=True)
    return Trained(**vars(bundle), fitted=fitted, evaluation=evaluation)


def training_of(candidate: Candidate, queries: Queries, task: str, seed: int) -> Training:
    """Return the manifest's record of a training."""
    return Training(
        task=task,
        inputs=len(queries.train),
        inputs_sha256=queries.sha256,
        seed=seed,
        epochs=candidate.epochs,
        seconds=round(candidate.seconds, 2),
        device=str(candidate.data.inputs.device),
        recipe=candidate.options,
    )


def _contents(
    teacher: Teacher, candidate: Candidate, training: Training, sizes: Sizes, *, keep: bool
) -> dict[str, Any]:
    """Return the contents of the bundle with a new stand-in."""
    bundle, made = teacher.bundle, candidate.exported()
    envelope = envelope_of(candidate.data, teacher)
    backups = backups_of(bundle)
    if candidate.coded:
        backups = [each for each in backups if not each.model.slot]
        if made.backup is not None and not backups:
            backups = [BackupPart(made.backup)]
        parity = ParityPart(candidate.proposal.code, made, training)
        return contents_of(bundle, parity, backups, envelope, sizes=sizes)
    assert made.backup is not None
    backups = [*(backups if keep else ()), BackupPart(made.backup, training)]
    # The envelope of a parity model stays: more depends on it.
    return contents_of(
        bundle, parity_of(bundle), backups, bundle.envelope() or envelope, sizes=sizes
    )


def _default_network(teacher: Teacher, spec: CodeSpec, queried: Queried, sizes: Sizes) -> str:
    """Choose the network of parity models where none is named.

    It is the deployed model's if the bundle holds its weights, which training then starts from.
    Else it is the most capable that takes no longer than the deployed model for one query, by times
    measured here, or the fastest if all take longer: a slower one would make its instances a
    bottleneck.
    """
    code = code_for(spec, teacher)
    if not teacher.plain:
        proposed, _ = propose_named(teacher, queried, sizes)
        backups = [each for each in proposed if each.code is None]
        fast = [each for each in backups if code.k * each.share <= SLACK]
        return (fast or backups[-1:])[0].network
    network = teacher.bundle.manifest.deployed.network
    if not teacher.foreign and family(network) in NETWORKS.names:
        return network
    names = [name for name in ladder(code.query_shape) if fits(name, code)]
    reference = OnnxModel(teacher.bundle.deployed_path)
    fits_at, above = 0, len(names)
    while above - fits_at > 1:
        middle = (fits_at + above) // 2
        if _is_slower(names[middle], code, reference):
            above = middle
        else:
            fits_at = middle
    return names[fits_at]


def _is_slower(network: str, code: Code, reference: OnnxModel) -> bool:
    with torch.random.fork_rng(devices=[]):
        module = parity_network(network, code).make()
    model = OnnxModel(export(module, [floats(code.parity_shape)]))
    ours, theirs = inference_times([model, reference])
    return ours > SLACK * theirs
