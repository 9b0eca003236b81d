"""Training an approximate backup: a cheaper network that imitates a deployed model F.

Its targets are F's own predictions, so labels are never needed. (The baseline that coded
resilience is compared with: Kosaian et al., SOSP 2019, section 5.2.6.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from parity_models.codes import Code
from parity_models.models.bundle import Bundle, NewModel, Training, write_bundle
from parity_models.models.export import export, floats
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.queried import Queried
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.models.weights import has_weights
from parity_models.roles import BACKUPS
from parity_models.tasks import Split
from parity_models.tasks.output_kind import OutputKind
from parity_models.tasks.unlabelled import choose_metric
from parity_models.training.checkpoint import Options
from parity_models.training.device import place
from parity_models.training.distillation import SQUARED_ERROR, TEMPERATURE
from parity_models.training.fit import Fitted
from parity_models.training.imitation import Imitation
from parity_models.training.inputs import TRIED, check_rows_apart, check_splits
from parity_models.training.lessons import Lessons, envelope_of, lessons_of
from parity_models.training.likeness import Converted, answering
from parity_models.training.ranked import KnownBackup, backups_of, check_room, ranked
from parity_models.training.rows import on_device
from parity_models.training.run import Outcome, Run, Settings
from parity_models.training.scaling import plain
from parity_models.training.stand_in_network import (
    StandInNetwork,
    group_network,
    queried,
    stand_in_network,
)
from parity_models.training.subject import Subject, subject_of
from parity_models.training.teacher import load_teacher
from parity_models.training.together import Together


def train_backup(
    bundle: Bundle,
    network: str,
    inputs: NDArray[Any],
    out: Path,
    settings: Settings | None = None,
    *,
    validation: Split | None = None,
    metric: str | None = None,
    output_kind: str | None = None,
    mirrored: bool = False,
    keep: bool = False,
) -> Outcome:
    """Train the network called `network` as a backup for the deployed model of `bundle`.

    `inputs` need no labels: (n, *query_shape), or rows of one kind of the model's signature. The
    best epoch is chosen by `metric` on `validation`;
    without it, on inputs held out, where F's own predictions count as right. Metric and
    `output_kind` are by default what suits the predictions (`choose_output_kind`). `mirrored`
    allows to turn queries left to right. Writes to `out` all that `bundle` holds, and the backup:
    in place of its own, or, to `keep` these, beside them.
    Raises DataError for inputs that do not fit, TrainingError for settings that cannot work and
    backups that are too many, and BundleError if `out` is no place for a bundle.
    """
    if keep:
        check_room(bundle)
    learned = imitate(
        bundle,
        network,
        inputs,
        out,
        settings or Settings(),
        validation=validation,
        metric=metric,
        output_kind=output_kind,
        mirrored=mirrored,
    )
    backup = exported_backup(learned.module, network, learned.subject, learned.lessons.output_kind)
    sizes = commonest(inputs, learned.subject.signature)
    written = _with_backup(bundle, out, backup, learned, sizes, keep=keep)
    return learned.run.end(written, learned.fitted)


@dataclass(frozen=True)
class Learned:
    """A network for single queries that has learned what the subject says, and how."""

    module: nn.Module
    subject: Subject
    lessons: Lessons
    run: Run
    fitted: Fitted
    training: Training


def imitate(
    bundle: Bundle,
    network: str,
    inputs: NDArray[Any],
    out: Path,
    settings: Settings,
    *,
    validation: Split | None,
    metric: str | None,
    output_kind: str | None,
    mirrored: bool,
    least: int = 1,
    together: Code | None = None,
) -> Learned:
    """As `train_backup`, of `inputs` (n, *query_shape), but nothing is written; `least` queries are
    held out, or more.

    With `together` the network is one for the k queries of that code at once.
    """
    subject = subject_of(bundle)
    choose_metric(metric, subject.output.shape)
    check_splits(inputs, validation, subject, least)
    run = Run(out, settings, bundle.manifest.task, inputs)
    model = place(load_teacher(bundle, settings.predicted), run.device)
    check_rows_apart(model, on_device(inputs[:TRIED], subject, run.device))
    named = _network(network, subject, lambda: queried(bundle, inputs), together)
    module = run.build(named.make)
    lessons = lessons_of(
        model,
        subject,
        inputs,
        validation,
        run.device,
        metric=metric,
        output_kind=output_kind,
        mirrored=mirrored and named.recipe.mirror,
        least=least,
    )
    foreign = not has_weights(bundle)
    options: Options = {
        "deployed": bundle.manifest.deployed.sha256,
        "network": network,
        **({"code": str(together.spec)} if together else {}),
        "metric": lessons.metric,
        "output_kind": lessons.output_kind,
        "temperature": TEMPERATURE,
        "squared_error": SQUARED_ERROR,
        **named.recipe.options,
        "mirror": lessons.mirrored,
        "scaled": foreign,
    }
    problem: Imitation | Together
    if together is None:
        steps = named.recipe.steps_per_epoch(len(lessons.inputs))
        problem = Imitation(module, lessons, steps=steps, foreign=foreign)
    else:
        problem = Together.of(module, lessons, together.k, named.recipe)
    fitted = run.fit(problem, named.recipe, options)
    training = run.record(fitted, options)
    return Learned(problem.module, subject, lessons, run, fitted, training)


def _network(
    network: str, subject: Subject, told: Callable[[], Queried], together: Code | None
) -> StandInNetwork:
    if together is None:
        return stand_in_network(network, subject, told)
    return group_network(network, subject, told, together.k)


def exported_backup(
    module: nn.Module, network: str, subject: Subject, kind: OutputKind
) -> NewModel:
    """A trained backup, called `network`, whose answers are of `kind`."""
    if not isinstance(module, NamedModule):
        query_shape = subject.signature.input.shape
        served = answering(plain(module, query_shape), kind)
        return NewModel(export(served, [floats(query_shape)]), network)
    served = served_as(module, subject, kind)
    content = export(served, subject.imitator.inputs, subject.output.name)
    return NewModel(content, network, signature=subject.imitator)


def served_as(module: NamedModule, subject: Subject, kind: OutputKind) -> nn.Module:
    """A trained network as it is served, with answers of `kind` in the subject's data type."""
    served = answering(module.served(), kind)
    if subject.output.datatype == "FP32":
        return served
    return Converted(served, subject.output.dtype)


def _with_backup(
    bundle: Bundle,
    out: Path,
    backup: NewModel,
    learned: Learned,
    sizes: Sizes,
    *,
    keep: bool,
) -> Bundle:
    """Write all that `bundle` holds to `out`, and the backup: beside its own, if it is to `keep`
    these. Times are those of queries of these `sizes`."""
    manifest = bundle.manifest
    deployed = bundle.stored(manifest.deployed)
    parity = [bundle.stored(parity) for parity in manifest.parity]
    backups = [*(backups_of(bundle) if keep else ()), KnownBackup(backup, learned.training)]
    known = ranked(deployed, parity, backups, sizes)
    gates = {name: gate for name, gate in manifest.calibration.items() if name not in BACKUPS}
    return write_bundle(
        out,
        deployed=deployed,
        parity=parity,
        coders={name: bundle.stored(coder) for name, coder in manifest.coders.items()},
        backups=known.backups,
        code=manifest.code,
        imitated=manifest.imitated,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=manifest.parity_training,
        backup_trainings=known.trainings,
        inference_times=known.times,
        calibration=gates | known.calibration,
        # That of a parity model, to which more depends on it, stays.
        envelope=bundle.envelope() or envelope_of(learned.lessons, learned.subject),
        files={stored.file: bundle.path / stored.file for stored in manifest.files},
    )
