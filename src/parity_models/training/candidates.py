"""A stand-in in training: its networks, the problem they learn, its score, and its ONNX files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError
from parity_models.evaluation.calibration import LEVELS, estimate_coverage
from parity_models.models.bundle import PROBABILITIES, NewModel, Training, parity_inputs
from parity_models.models.export import export
from parity_models.models.gate import HEAD, AnsweredClass, Calibration, confidences, suited
from parity_models.models.networks.network import Slot, Slotwise, served
from parity_models.models.networks.queried import Queried
from parity_models.models.signature import Tensor as NamedTensor
from parity_models.progress import OnProgress
from parity_models.tasks.metrics import agreement_for
from parity_models.training.device import computing, place, predict
from parity_models.training.distillation import (
    PLAINLY,
    SQUARED_ERROR,
    TEMPERATURE,
    DistillationData,
    OutputTransform,
    Served,
    valid,
)
from parity_models.training.fit import Budget, Fitted, RunOptions, fit
from parity_models.training.head import Head, choose_head
from parity_models.training.networks import (
    Factory,
    ParityPlan,
    build_models,
    parity_network,
    single_network,
)
from parity_models.training.problems import Distillation, Scaled
from parity_models.training.teacher import Queries, Teacher


class Proposal(msgspec.Struct, frozen=True):
    """A stand-in to train: a network for single queries, or the parity models of a code.

    `share` is the time that one run takes, as a share of F's: estimated, until it is measured.
    """

    network: str
    code: CodeSpec | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """The name in reports."""
        if self.code is None:
            return f"backup {self.network}"
        code = f"{self.code.encoder}+{self.code.decoder} k={self.code.k}"
        return f"parity {self.network} {code}" + (f" r={self.code.r}" if self.code.r > 1 else "")


@dataclass(frozen=True)
class Exported:
    """A stand-in as it goes into a bundle: the parity models of a `code`, or a `backup`; its
    training, and its gate, if it was calibrated.

    Parity models that run one network in each slot come with that network as a `backup`.
    """

    code: CodeSpec | None = None
    parity: list[NewModel] = field(default_factory=list)
    backup: NewModel | None = None
    training: Training | None = None
    gate: Calibration | None = None

    @property
    def first(self) -> NewModel:
        """The model whose time counts: a parity model, or the backup."""
        (found, *_) = [*self.parity, self.backup]
        assert found is not None
        return found


def code_for(spec: CodeSpec, teacher: Teacher) -> Code:
    """Return the code for a deployed model's queries. Raises CodeError for one that cannot be."""
    signature = teacher.signature
    if not teacher.plain:
        raise CodeError(
            "parity models are trained for models of one float32 input and output of fixed shape, "
            f"and this one takes {signature}; train a backup, with parm backup or parm protect"
        )
    shapes = {each.name: each.shape for each in signature.inputs}
    return Code(spec, shapes, teacher.output.shape)


class Candidate:
    """A stand-in in training, and how good it is: 0 until it is `trained`.

    Its networks are built at once, so that ones that do not fit are refused early; `learn_from`
    gives it the queries and predictions. A code's networks start from the weights of `model`, F,
    where layers are alike. `score` is the metric's, `covered` the estimated share of queries that
    it may answer, and `judging` the seconds that judging it takes. Raises CodeError and
    TrainingError for a code and a network that cannot be.
    """

    def __init__(
        self,
        proposal: Proposal,
        teacher: Teacher,
        model: nn.Module,
        device: torch.device,
        queried: Queried,
        *,
        seed: int = 0,
        factory: Factory | None = None,
        plan: ParityPlan = parity_network,
    ) -> None:
        self.proposal = proposal
        self.score = self.covered = self.seconds = self.judging = 0.0
        self.epochs = 0
        self.trained = False
        self._teacher, self._seed = teacher, seed
        self._foreign = teacher.foreign
        self._code = None if proposal.code is None else code_for(proposal.code, teacher)
        network = factory or proposal.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self._code is None:
                chosen = single_network(network, queried, teacher.output.shape)
                module = chosen.make()
            else:
                chosen = plan(network, self._code)
                module, started = build_models(chosen, self._code.r, model)
                self._foreign = self._foreign and chosen.recipe.from_deployed and not started
            self._module = place(module, device)
        self.recipe = chosen.recipe
        self._probabilities = False
        """True if decoders compute with probabilities; results are made probabilities again."""

    def learn_from(self, data: DistillationData) -> None:
        """Set the queries and predictions to learn from."""
        module, recipe, foreign, code = self._module, self.recipe, self._foreign, self._code
        if not recipe.mirror:
            data = replace(data, predictions=data.predictions[:1])
        if code is not None and not code.decoder.reads_off:
            # It computes with predictions, so they are learned as F gives them.
            kind = data.output_kind
            self._probabilities = kind == "probabilities"
            transform = OutputTransform.of(PLAINLY.get(kind, kind), data.predictions)
            data = replace(data, transform=transform)
        self._problem = Distillation(module, code, data, recipe, foreign=foreign)
        self.data = data

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.proposal.name

    @property
    def coded(self) -> bool:
        """True if it takes several queries at once."""
        return self.proposal.code is not None

    @property
    def share(self) -> float:
        """The time of a run as a share of F's."""
        return self.proposal.share

    @property
    def saving(self) -> float:
        """The mean time by which late queries are answered sooner than by a copy, in F's times."""
        return saving(self.covered, self.share)

    @property
    def options(self) -> RunOptions:
        """All that determines the networks besides data, chance and time."""
        code = self.proposal.code
        return {
            "deployed": self._teacher.sha256,
            "network": self.proposal.network,
            **({} if code is None else {"code": str(code)}),
            "metric": self.data.metric,
            "output_kind": self.data.output_kind,
            **({PROBABILITIES: True} if self._probabilities else {}),
            "temperature": TEMPERATURE,
            "squared_error": SQUARED_ERROR,
            **self.recipe.options,
            "mirror": self.data.mirrored,
            "scaled": self._foreign,
        }

    def fit(
        self,
        budget: Budget | None,
        checkpoint: Path | None = None,
        *,
        options: RunOptions | None = None,
        seed: int | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        began: float | None = None,
    ) -> Fitted:
        """Train within the `budget`, by default the recipe's, and be no worse than before."""
        with computing(self.recipe.threaded):
            fitted = fit(
                self._problem,
                self.recipe,
                budget or Budget(self.recipe.usual_epochs(self._problem.steps)),
                seed=self._seed if seed is None else seed,
                checkpoint=checkpoint,
                options=self.options | (options or {}),
                resume=resume,
                on_progress=on_progress,
                began=began,
                known=self.score if self.trained else None,
            )
        self.score = fitted.score
        self.seconds += fitted.seconds
        self.epochs += fitted.epochs
        self.trained = True
        return fitted

    def judge(self, level: float, answer_only: Sequence[AnsweredClass] = ()) -> None:
        """Estimate, from held-out queries, the share that it may answer if `level` of the answers
        must agree; see `estimate_coverage`."""
        began = time.monotonic()
        given, rows = map(np.concatenate, zip(*self._problem.answers(), strict=True))
        predictions = self.data.held_out.predictions.cpu().numpy()[rows]
        self.judging = time.monotonic() - began
        metric = self.data.metric
        self.covered = estimate_coverage(given, predictions, metric, level, answer_only)

    def exported(self, queries: Queries, levels: Sequence[float] = LEVELS) -> Exported:
        """Export what goes into a bundle, with a record of the training on these queries.

        A backup has a head if more may be answered by it at these `levels` of agreement.
        """
        module, code, parity = self._problem.module, self._code, []
        slot: nn.Module | None = None
        if isinstance(module, nn.ModuleList):
            for each in module:
                inner = each.network if isinstance(each, Scaled) else each
                slotwise = isinstance(inner, Slotwise)
                parity.append(self._model(each, code, slotwise=slotwise))
                if isinstance(inner, Slotwise) and slot is None:
                    slot = each.slot() if isinstance(each, Scaled) else Slot(inner)
        else:
            slot = module
        training = Training(
            task=self._teacher.bundle.manifest.task,
            inputs=len(queries.train),
            inputs_sha256=queries.sha256,
            seed=self._seed,
            epochs=self.epochs,
            seconds=round(self.seconds, 2),
            device=str(self.data.inputs.device),
            recipe=self.options,
        )
        head = self._choose_head(levels) if code is None else None
        backup = None if slot is None else self._model(slot, head=head, slot=code is not None)
        return Exported(self.proposal.code, parity, backup, training)

    def _choose_head(self, levels: Sequence[float]) -> Head | None:
        """Return the head for a backup, if one is worth having, by the queries held out."""
        held_out, transform, metric = self.data.held_out, self.data.transform, self.data.metric
        predictions = held_out.predictions.cpu().numpy()
        raw = predict(self._problem.module, held_out.inputs)
        given = valid(transform.kind, raw).cpu().numpy()
        agreement = agreement_for(metric, predictions)
        kind = suited(agreement.kind, given)
        sure = None if kind == "none" else confidences(kind, given)
        agreed, of_classes = agreement(given, predictions), transform.of_classes
        with computing(threaded=False):
            return choose_head(raw, agreed, sure, levels, of_classes=of_classes, seed=self._seed)

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
        teacher, network = self._teacher, self.proposal.network
        signature, output = teacher.stand_in(), teacher.output
        if code is not None:
            given = NamedTensor(output.name, output.datatype, code.parity_output_shape)
            inputs = parity_inputs(code, signature)
            signature = msgspec.structs.replace(signature, inputs=inputs, outputs=(given,))
        module = served(module)
        kind = self.data.output_kind
        if kind in PLAINLY or output.dtype != np.float32 or head is not None:
            module = Served(module, kind, output.dtype, head)
        if head is not None:
            outputs = (*signature.outputs, NamedTensor(HEAD, "FP32", (1,)))
            signature = msgspec.structs.replace(signature, outputs=outputs)
        content = export(module, signature.inputs, *(each.name for each in signature.outputs))
        name = f"{network}, one slot" if marks.get("slot") else network
        return NewModel(content, name, signature=signature, **marks)


def saving(covered: float, share: float) -> float:
    """Return how much sooner late queries are answered than by a copy, in F's times, on average.

    A stand-in takes `share` of F's time and answers a share `covered` of the queries.
    """
    return covered * max(0.0, 1 - share)
