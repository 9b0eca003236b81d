"""Training one stand-in for a deployed model, and bundling the two: parity models, or a backup.

Targets are the deployed model's own predictions, so labels are never needed; a task's labels only
measure how right stand-ins are.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

import msgspec
from rich.console import RenderableType

from parity_models.bundle.bundle import Bundle, check_replaceable, write_bundle
from parity_models.codes import CodeSpec
from parity_models.documents import why_not_writable
from parity_models.errors import BundleError
from parity_models.evaluation.judging import (
    Evaluation,
    GivenInputs,
    answered_classes,
    calibrate_gates,
    inference_table,
    judge,
)
from parity_models.evaluation.outputs import Outputs
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.progress import Callbacks, OnProgress
from parity_models.tensors.queries import commonest
from parity_models.training.candidates import Candidate, Exported, TrainingContext
from parity_models.training.device import choose_device, place
from parity_models.training.distillation import distill, envelope_of
from parity_models.training.fit import Budget, Fitted, network_in
from parity_models.training.network_plans import Factory, ParityPlan, find_network, parity_network
from parity_models.training.search import propose_network
from parity_models.training.teacher import (
    Model,
    Queries,
    Teacher,
    TrainingOptions,
    find_queries,
    open_teacher,
    teacher_of,
)
from parity_models.trust.gate import Calibration, StandIn

if TYPE_CHECKING:
    from parity_models.fields import TrainingOptionsFields

BEST = CodeSpec("stack", "separate", 2)
"""The code that parity models are trained for by default."""


@dataclass(frozen=True, kw_only=True)
class Trained(Printed, Bundle):
    """The bundle that a training wrote, its accuracy on test queries, and the end of the run."""

    fitted: Fitted
    evaluation: Evaluation | None = None

    @property
    def parts(self) -> Sequence[RenderableType]:
        """Tables of accuracy, gates and times, and how the run ended."""
        found = [inference_table(self)] if self.evaluation is None else self.evaluation.parts
        return [*found, *self.gates.parts, *self.ending]

    @property
    def ending(self) -> Iterator[str]:
        """Sentences on the epoch that was kept and on the end of the run."""
        fitted = self.fitted
        if fitted.diverged:
            yield (
                f"warning: the training diverged in epoch {fitted.epochs} and ended there, so the "
                "best epoch has learned little; train again with another seed or network"
            )
        yield (
            f"{self.path} holds the best epoch, {fitted.best_epoch} of {fitted.epochs} "
            f"({fitted.seconds:.0f} s)"
        )
        if fitted.resumable:
            yield "interrupted: this is the best so far; resume the run to continue"
        elif fitted.interrupted:
            yield "interrupted in the first epoch, so there is nothing to resume"


def train_parity(
    model: Model,
    inputs: GivenInputs,
    /,
    *,
    out: Path | str,
    code: CodeSpec | None = None,
    network: str | Factory | None = None,
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Unpack["TrainingOptionsFields"],
) -> Trained:
    """Train the parity models of a code for a deployed model, and bundle the two.

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: Queries, without labels: a file, an array (n, *query_shape), or an array for each
            input by name. Three tenths are held out: to choose the best epoch, to calibrate gates,
            and to measure accuracy.
        out: The folder of the bundle to write.
        code: By default stack and separate, k=2. Queries of several inputs, of integers or of
            dynamic axes are stacked along a new axis.
        network: A name, your own as package.module:name, or a function that makes networks. By
            default the deployed model's, if its weights are in the bundle; otherwise the most
            capable one that is not slower than the deployed model.
        callbacks: Called as the training goes on.
        options: All options as a TrainingOptions, instead of fields by name.
        **given: Fields of TrainingOptions.

    Returns:
        The bundle of the deployed model, its parity models, and the backup that it had. Ctrl-C ends
        training early and writes the best so far; a checkpoint next to `out` lets you resume.

    Raises:
        CodeError: For a code that cannot be built.
        DataError: For inputs that do not fit.
        ModelError: For a model that cannot be deployed.
        TrainingError: For a network that cannot work, and a run that cannot be resumed.
        BundleError: If `out` cannot hold a bundle.
        UserError: For options out of range or that contradict each other.
    """
    chosen = gather(TrainingOptions, options, given)
    spec = code or BEST
    with open_teacher(model, inputs, chosen.output) as teacher:
        if spec.encoder == "stack" and not (spec.encoder_options or teacher.plain):
            spec = msgspec.structs.replace(spec, encoder_options={"new_axis": True})
        queries = find_queries(teacher, inputs, chosen, k=spec.k)
        return train(teacher, queries, out, network, spec, chosen, callbacks=callbacks)


def train_backup(
    model: Model,
    inputs: GivenInputs,
    /,
    *,
    out: Path | str,
    network: str | Factory,
    callbacks: Callbacks | None = None,
    options: TrainingOptions | None = None,
    **given: Unpack["TrainingOptionsFields"],
) -> Trained:
    """Train a cheaper network as a backup for a deployed model, and bundle the two.

    (The approximate backup that coded resilience is compared with: Kosaian et al., SOSP 2019,
    section 5.2.6.)

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: As for `train_parity`.
        out: The folder of the bundle to write; may be the model's.
        network: A name, your own as package.module:name, or a function that makes networks.
        callbacks: Called as the training goes on.
        options: All options as a TrainingOptions, instead of fields by name.
        **given: Fields of TrainingOptions.

    Returns:
        The bundle with the contents of the given one, and this backup in place of an earlier one.

    Raises:
        DataError, ModelError, TrainingError, BundleError, UserError: As for `train_parity`.
    """
    chosen = gather(TrainingOptions, options, given)
    with open_teacher(model, inputs, chosen.output) as teacher:
        held = teacher.bundle.manifest.code
        queries = find_queries(teacher, inputs, chosen, k=1 if held is None else held.k)
        return train(teacher, queries, out, network, None, chosen, callbacks=callbacks)


def train(
    deployed: Teacher | Bundle,
    queries: Queries,
    out: Path | str,
    network: str | Factory | None,
    code: CodeSpec | None,
    options: TrainingOptions,
    *,
    plan: ParityPlan = parity_network,
    callbacks: Callbacks | None = None,
) -> Trained:
    """Train a stand-in on these `queries`: see `parity`, and without a `code`, `backup`.

    Without queries for calibration there are no gates; without queries for tests, no accuracy.
    """
    teacher = deployed if isinstance(deployed, Teacher) else teacher_of(deployed)
    callbacks, out = callbacks or Callbacks(), Path(out).resolve()
    bundle, device = teacher.bundle, choose_device(options.device)
    check_place(out)
    queried = teacher.describe(queries.train)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if network is None and options.resume:  # measured again, another might be proposed
        network = network_in(checkpoint)
    if network is None:
        assert code is not None
        sizes = commonest(queries.train, teacher.signature)
        network = propose_network(teacher, code, queried, sizes)
        callbacks.say(f"parity network: {network}")
    began = time.monotonic()
    find_network(network)  # a wrong name is refused before the model predicts
    model = place(teacher.network(callbacks.on_progress), device)
    data = distill(model, teacher, queries, device)
    only = answered_classes(bundle, None)
    context = TrainingContext(teacher, model, queries, data, queried, options.seed, allowed=only)
    candidate = Candidate(network, context, code, plan=plan)
    fitted = candidate.fit(
        Budget(options.epochs, options.seconds),
        checkpoint,
        options={"task": bundle.manifest.task, "inputs": queries.sha256, "seed": options.seed},
        resume=options.resume,
        on_progress=callbacks.on_progress,
        began=began,
    )
    made = candidate.exported()
    written, evaluation = write_trained(candidate, made, out, progress=callbacks.on_progress)
    if not fitted.interrupted:
        checkpoint.unlink(missing_ok=True)
    return Trained(**vars(written), fitted=fitted, evaluation=evaluation)


def write_trained(
    candidate: Candidate,
    made: Exported,
    out: Path,
    *,
    keep: bool = True,
    named: Collection[float] = (),
    progress: OnProgress | None = None,
) -> tuple[Bundle, Evaluation | None]:
    """Write the bundle of a deployed model and the stand-ins `made` of a trained candidate, with
    gates, of the usual levels and those `named`, and accuracy. Return it and its evaluation.

    With `keep`, other stand-ins that the model has stay. They may have learned from the queries
    held out now, unless they were trained on the same: they keep their gates, and are not judged.
    """
    context, metric = candidate.context, candidate.data.metric
    teacher, queries, kept = context.teacher, context.queries, dict[str, Any]()
    bundle, held = teacher.bundle, teacher.bundle.manifest
    envelope, before, stays = envelope_of(candidate.data, teacher), held.parity_training, ""
    if not keep:
        before = None
    elif not made.parity:
        envelope = bundle.envelope() or envelope  # the parity models', as more depends on it
        stays, parity = "reconstruction", [bundle.stored(each) for each in held.parity]
        kept = {"code": held.code, "parity": parity, "parity_training": before}
    elif held.backup is not None and not held.backup.slot:
        stays, before, made = "backup", held.backup_training, replace(made, backup=None)
        kept = {"backup": bundle.stored(held.backup), "backup_training": before}
    sizes = commonest(queries.train, teacher.signature)
    contents = replace(made, **kept).contents(bundle, envelope, sizes)
    alike = before is not None and before.inputs_sha256 == queries.sha256
    gates: dict[StandIn, Calibration] = {}
    evaluation = None
    with TemporaryDirectory() as folder:
        draft = write_bundle(Path(folder, "draft"), **contents | ({} if alike else vars(made)))
        if queries.calibration is not None and len(queries.calibration):
            outputs = Outputs(draft, queries.calibration, progress=progress)
            gates = calibrate_gates(outputs, metric=metric, named=named, allowed=context.allowed)
        gates |= {name: gate for name, gate in held.calibration.items() if name == stays}
        if queries.test is not None:
            evaluation = judge(Outputs(draft, queries.test, progress=progress), None, metric, gates)
    if evaluation is None:
        return write_bundle(out, **contents, calibration=gates), None
    written = write_bundle(out, **contents, calibration=gates, accuracy=evaluation.accuracy)
    return written, replace(evaluation, bundle=written)


def check_place(out: Path) -> None:
    """Raise BundleError if a bundle cannot be written to `out`."""
    check_replaceable(out)
    if why := why_not_writable(out.parent):
        raise BundleError(f"{why}; choose another folder")
