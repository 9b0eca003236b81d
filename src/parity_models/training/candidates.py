"""A stand-in in training: its networks, the problem they learn, its score, and its ONNX files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from parity_models.bundle.bundle import PROBABILITIES, Bundle, NewModel, Training
from parity_models.bundle.inference_time import measure_models
from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError
from parity_models.progress import OnProgress
from parity_models.tasks.metrics import agreement_for
from parity_models.tensors.signature import Sizes
from parity_models.tensors.signature import Tensor as NamedTensor
from parity_models.training.device import computing, place, predict
from parity_models.training.distillation import (
    PLAIN_KIND,
    SQUARED_ERROR,
    TEMPERATURE,
    Distillation,
    DistillationData,
    OutputTransform,
    Served,
    valid,
)
from parity_models.training.export import export
from parity_models.training.fit import Budget, Fitted, Run, RunOptions
from parity_models.training.head import Head, choose_head
from parity_models.training.network_plans import (
    Factory,
    ParityPlan,
    build_models,
    parity_network,
    single_network,
)
from parity_models.training.networks.network import EachSlot
from parity_models.training.networks.queried import Queried
from parity_models.training.teacher import Queries, Teacher
from parity_models.trust.calibration import LEVELS, estimate_coverage
from parity_models.trust.envelope import Envelope
from parity_models.trust.gate import HEAD, AnsweredClass, confidences, suited


@dataclass(frozen=True)
class Exported:
    """Stand-ins as they go into a bundle, by the names that `write_bundle` has for them: the parity
    models of a `code`, a `backup`, and how these were trained."""

    code: CodeSpec | None = None
    parity: Sequence[NewModel] = ()
    backup: NewModel | None = None
    parity_training: Training | None = None
    backup_training: Training | None = None

    def contents(self, deployed: Bundle, envelope: Envelope, sizes: Sizes) -> dict[str, Any]:
        """Return what `write_bundle` takes for a bundle of these and a deployed model, except gates
        and accuracy. Models are timed for queries of these `sizes`."""
        manifest = deployed.manifest
        model, times = deployed.stored(manifest.deployed), None
        if not manifest.deployed.elsewhere:
            times = measure_models(model, self.parity, self.backup, sizes)
        return vars(self) | {
            "deployed": model,
            "imitated": manifest.imitated,
            "labels": manifest.labels,
            "name": manifest.name,
            "deployed_training": manifest.deployed_training,
            "inference_times": times,
            "envelope": envelope,
            "files": {each.file: deployed.path / each.file for each in manifest.files},
        }


def code_for(spec: CodeSpec, teacher: Teacher) -> Code:
    """Return the code for a deployed model's queries. Raises CodeError for an impossible one."""
    shapes = {each.name: each.shape for each in teacher.signature.inputs}
    code = Code(spec, shapes, teacher.output.shape)
    if not (teacher.plain or code.by_slot):
        raise CodeError(
            "for models of several inputs, of integers or of dynamic axes, one parity model is "
            "trained, which answers each slot separately: use the encoder "
            "stack@new-axis=true, the decoder separate, and r=1"
        )
    return code


@dataclass(frozen=True)
class TrainingContext:
    """All that the candidates for one deployed model have in common.

    `model` is F as a module, `queried` describes the `queries`, and `data` are F's predictions for
    them. `level` is the agreement wanted, by default each of
    LEVELS; with `allowed` classes, it is that of answers in these.
    """

    teacher: Teacher
    model: nn.Module
    queries: Queries
    data: DistillationData
    queried: Queried
    seed: int = 0
    level: float | None = None
    allowed: tuple[AnsweredClass, ...] = ()


class Candidate:
    """A stand-in in training: a backup, or the parity models of a code; and how good it is, 0 until
    it is `trained`.

    A code's networks start from F's weights where layers are alike. Running it takes `share` of F's
    time. `score` is the metric's, and `covered` the estimated share of queries that it may answer.
    Raises CodeError for an impossible code, and TrainingError for an impossible network.
    """

    def __init__(
        self,
        network: str | Factory,
        context: TrainingContext,
        code: CodeSpec | None = None,
        *,
        share: float = 1.0,
        plan: ParityPlan = parity_network,
    ) -> None:
        self.share = share
        self.score = self.covered = self.seconds = 0.0
        self.epochs = 0
        self.trained = False
        self.context = context
        teacher, data = context.teacher, context.data
        self._foreign = teacher.foreign
        self._code = None if code is None else code_for(code, teacher)
        coder = None if self._code is None or self._code.by_slot else self._code
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            if coder is None:
                chosen = single_network(network, context.queried, teacher.output.shape)
                module = chosen.make()
            else:
                chosen = plan(network, coder)
                module, started = build_models(chosen, coder.r, context.model)
                self._foreign = self._foreign and chosen.recipe.from_deployed and not started
            module = place(module, data.inputs.device)
        self.network, self.recipe = chosen.name, chosen.recipe
        self.name = f"backup {self.network}"  # in reports of searches
        if not chosen.recipe.mirror:
            data = replace(data, predictions=data.predictions[:1])
        self._probabilities = False
        """True if decoders compute with probabilities; results are made probabilities again."""
        if coder is not None and not coder.decoder.reads_off:
            # It computes with predictions, so they are learned as F gives them.
            kind = data.transform.kind
            self._probabilities = kind == "probabilities"
            transform = OutputTransform.of(PLAIN_KIND.get(kind, kind), data.predictions)
            data = replace(data, transform=transform)
        self._problem = Distillation(module, coder, data, chosen.recipe, foreign=self._foreign)
        self.data = data

    @property
    def saving(self) -> float:
        """The mean time that it saves late queries over a copy, as a share of F's time."""
        return saving(self.covered, self.share)

    @property
    def options(self) -> RunOptions:
        """All that determines the networks, except data, chance and time."""
        return {
            "deployed": self.context.teacher.bundle.manifest.deployed.sha256,
            "network": self.network,
            **({} if self._code is None else {"code": str(self._code.spec)}),
            "metric": self.data.metric,
            "output_kind": self.data.transform.kind,
            **({PROBABILITIES: True} if self._probabilities else {}),
            "temperature": TEMPERATURE,
            "squared_error": SQUARED_ERROR,
            **self.recipe.options,
            "mirror": self.data.mirrored,
            "scaled": self._foreign,
        }

    def fit(
        self,
        budget: Budget,
        checkpoint: Path | None = None,
        *,
        options: RunOptions | None = None,
        seed: int | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        began: float | None = None,
    ) -> Fitted:
        """Train within the `budget`, and be no worse than before."""
        with computing(self.recipe.threaded):
            run = Run(
                self._problem,
                self.recipe,
                budget,
                seed=self.context.seed if seed is None else seed,
                checkpoint=checkpoint,
                options=self.options | (options or {}),
                on_progress=on_progress,
                began=time.monotonic() if began is None else began,
            )
            fitted = run.fit(resume=resume, known=self.score if self.trained else None)
        self.score = fitted.score
        self.seconds += fitted.seconds
        self.epochs += fitted.epochs
        self.trained = True
        return fitted

    def judge(self) -> None:
        """Estimate, from held-out queries, the share that a backup may answer at the wanted level
        of agreement; see `estimate_coverage`."""
        context = self.context
        assert context.level is not None
        ((given, _),) = self._problem.answers()
        predictions = self.data.held_out_predictions.cpu().numpy()
        self.covered = estimate_coverage(
            given, predictions, self.data.metric, context.level, context.allowed
        )

    def exported(self) -> Exported:
        """Export the stand-ins for a bundle, with a record of the training.

        Parity models that run one network in each slot come with that network as a backup. Any
        other backup gets a head if that lets it answer more at the wanted level.
        """
        models, context = self._problem.models, self.context
        training = Training(
            task=context.teacher.bundle.manifest.task,
            inputs=len(context.queries.train),
            inputs_sha256=context.queries.sha256,
            seed=context.seed,
            epochs=self.epochs,
            seconds=round(self.seconds, 2),
            device=str(self.data.inputs.device),
            recipe=self.options,
        )
        if self._code is None:
            backup = self._model(models[0], head=self._choose_head())
            return Exported(backup=backup, backup_training=training)
        if self._code.by_slot:
            models = [EachSlot(models[0], self._code.k)]
        one = models[0].network if isinstance(models[0], EachSlot) else None
        parity = [self._model(each, self._code, slotwise=one is not None) for each in models]
        slot = None if one is None else self._model(one, slot=True)
        return Exported(self._code.spec, parity, slot, training)

    def _choose_head(self) -> Head | None:
        """Return the head for a backup, if one is worth having, by the queries held out."""
        data, transform, metric = self.data, self.data.transform, self.data.metric
        context = self.context
        levels = LEVELS if context.level is None else [context.level]
        predictions = data.held_out_predictions.cpu().numpy()
        raw = predict(self._problem.module, data.held_out)
        given = valid(transform.kind, raw).cpu().numpy()
        agreement = agreement_for(metric, predictions)
        kind = suited(agreement.kind, given)
        sure = None if kind == "none" else confidences(kind, given)
        agreed, of_classes = agreement(given, predictions), transform.of_classes
        with computing(threaded=False):
            return choose_head(raw, agreed, sure, levels, of_classes=of_classes, seed=context.seed)

    def _model(
        self,
        module: nn.Module,
        code: Code | None = None,
        *,
        head: Head | None = None,
        **marks: bool,
    ) -> NewModel:
        """Export a module for single queries, or the parity queries of a code, as it is served:
        with valid answers, in the data type of F's output."""
        teacher, network = self.context.teacher, self.network
        signature, output = teacher.stand_in(code), teacher.output
        kind = self.data.transform.kind
        if kind in PLAIN_KIND or output.dtype != np.float32 or head is not None:
            module = Served(module, kind, output.dtype, head)
        if head is not None:
            outputs = (*signature.outputs, NamedTensor(HEAD, "FP32", (1,)))
            signature = msgspec.structs.replace(signature, outputs=outputs)
        content = export(module, signature.inputs, *(each.name for each in signature.outputs))
        name = f"{network}, one slot" if marks.get("slot") else network
        return NewModel(content, name, signature=signature, **marks)


def saving(covered: float, share: float) -> float:
    """Return the mean time that a stand-in saves late queries over a copy, as a share of F's time.

    It takes `share` of F's time and answers a share `covered` of the queries.
    """
    return covered * max(0.0, 1 - share)
