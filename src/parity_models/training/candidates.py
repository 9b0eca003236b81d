"""A stand-in in training: its networks, the problem they learn, its worth, and its ONNX files."""

import time
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.codes import Code, CoderKind, CodeSpec, NamedShape
from parity_models.errors import CodeError, TrainingError
from parity_models.models.bundle import NewModel
from parity_models.models.bundle_fit import is_slot, parity_inputs
from parity_models.models.export import export, floats
from parity_models.models.gate import confidences, suited
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.queried import NO_QUERIES, Queried
from parity_models.models.networks.slotwise import Slotwise, Stacked, copy_weights
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Signature
from parity_models.models.signature import Tensor as NamedTensor
from parity_models.tasks.metrics import OutputKind, agreement_for
from parity_models.training.device import computing, place
from parity_models.training.distillation import (
    SQUARED_ERROR,
    TEMPERATURE,
    DistillationData,
    served,
)
from parity_models.training.fit import Fitted, OnProgress, fit
from parity_models.training.networks import (
    Factory,
    NetworkPlan,
    backup_network,
    parity_network,
)
from parity_models.training.problems import (
    CodedNetworks,
    Imitation,
    Problem,
    Reconstruction,
)
from parity_models.training.recipes import Budget, RunOptions, draw_as_published
from parity_models.training.scaling import one_slot, plain, unscaled
from parity_models.training.teacher import Teacher

Array = NDArray[Any]

STACKED = {"new_axis": True}
"""The options of the stack encoder that joins queries of any shape and type."""


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

    @property
    def slug(self) -> str:
        """A name for files, the same for the same proposal."""
        code = "" if self.code is None else f"-{self.code}"
        kept = (each if each.isalnum() or each in "@.-" else "-" for each in self.network + code)
        return "".join(kept)


@dataclass(frozen=True)
class Exported:
    """The models of a trained stand-in: parity models and learned coders, or a backup.

    Parity models that run one network in each slot come with that network as a `backup`.
    """

    parity: list[NewModel] = field(default_factory=list)
    coders: dict[CoderKind, NewModel] = field(default_factory=dict)
    backup: NewModel | None = None

    @property
    def first(self) -> NewModel:
        """The model whose time counts: a parity model, or the backup."""
        (found, *_) = [*self.parity, self.backup]
        assert found is not None
        return found


def code_for(spec: CodeSpec, teacher: Teacher) -> Code:
    """Return the code for a deployed model's queries.

    For queries of named inputs, parity models are trained only for a stack along a new first axis
    and the separate decoder. Raises CodeError for a code that cannot be.
    """
    signature = teacher.signature
    if teacher.plain:
        return Code(spec, signature.input.shape, teacher.output.shape)
    shapes = {each.name: each.shape for each in signature.inputs}
    code = Code(spec, shapes, teacher.output.shape)
    queries = signature.smallest.input
    code.encode([queries.split(queries.zeros(0))] * code.k)  # no rows: types count
    stacked: list[NamedShape] = [(code.k, *each.shape) for each in signature.inputs]
    along_new_first = code.stacked_axis == 0 and list(code.parity_shapes.values()) == stacked
    if not (along_new_first and code.decoder.reads_off):
        raise CodeError(
            "for queries of named inputs parity models are trained for the stack encoder along a "
            "new first axis and the separate decoder: use --encoder stack@new-axis=true --decoder "
            "separate"
        )
    if spec.r > 1:
        raise CodeError("one parity model gives every slot apart, so more add nothing: use r=1")
    return code


class Candidate:
    """A stand-in in training, and how good it is: 0 until it is `trained`.

    Its networks are built at once, so that ones that do not fit are refused early; `learn_from`
    gives it what it learns. `score` is the metric's, `covered` the share of queries that it may
    answer as it looks; `judging` is how many seconds it takes to be judged. Raises CodeError and
    TrainingError for a code and a network that cannot be.
    """

    def __init__(
        self,
        proposal: Proposal,
        teacher: Teacher,
        model: nn.Module,
        device: torch.device,
        *,
        seed: int = 0,
        queried: Queried = NO_QUERIES,
        style: str = "distilled",
        factory: Factory | None = None,
    ) -> None:
        self.proposal = proposal
        self.score = 0.0
        self.covered = 0.0
        self.seconds = 0.0
        self.epochs = 0
        self.trained = False
        self.judging = 0.0
        self._teacher = teacher
        self._seed = seed
        self._foreign = teacher.foreign
        self._code = None if proposal.code is None else code_for(proposal.code, teacher)
        network = factory or proposal.network
        plan = self._plan(network, queried, style)
        self.recipe = plan.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._module = place(self._build(plan, model), device)

    def _plan(self, network: str | Factory, queried: Queried, style: str) -> NetworkPlan:
        if self._code is None or not self._teacher.plain:
            return backup_network(network, self._teacher, lambda: queried)
        return parity_network(network, self._code, style)

    def _build(self, plan: NetworkPlan, model: nn.Module) -> nn.Module:
        """Build the networks; those of a code start from the weights of `model` where alike."""
        if self._code is None or not self._teacher.plain:
            return plan.make()
        start = None if plan.recipe.style == "published" else model
        models, started = build_models(plan, self._code.r, start)
        self._foreign = self._foreign and start is not None and not started
        return CodedNetworks(models, self._code)

    def learn_from(self, data: DistillationData) -> None:
        """Set the queries and predictions to learn from."""
        data = data.for_recipe(mirror=self.recipe.mirror)
        module, recipe = self._module, self.recipe
        self._problem: Problem
        if isinstance(module, CodedNetworks):
            data = _decodable(data, module.code)
            self._problem = Reconstruction(module, data, recipe, foreign=self._foreign)
        else:
            self._problem = Imitation(module, data, recipe, foreign=self._foreign)
        self.data = data

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.proposal.name

    @property
    def coded(self) -> bool:
        """Whether it takes several queries at once."""
        return self.proposal.code is not None

    @property
    def share(self) -> float:
        """The time of a run as a share of F's."""
        return self.proposal.share

    @property
    def saving(self) -> float:
        """How much sooner late queries are answered than by a copy, in F's times, on average."""
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
            "temperature": TEMPERATURE,
            "squared_error": SQUARED_ERROR,
            **self.recipe.options,
            "mirror": self.data.mirrored,
            "scaled": self._foreign,
        }

    def fit(
        self,
        budget: Budget | None,
        checkpoint: Path,
        *,
        options: RunOptions,
        seed: int | None = None,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        began: float | None = None,
    ) -> Fitted:
        """Train within the `budget`, by default the recipe's, and be no worse than before."""
        known = self.score if self.trained else None
        with computing(self.recipe.threaded):
            fitted = fit(
                self._problem,
                self.recipe,
                budget or self.recipe.budget(self._problem.steps),
                seed=self._seed if seed is None else seed,
                checkpoint=checkpoint,
                options=self.options | options,
                resume=resume,
                on_progress=on_progress,
                began=began,
                known=known,
            )
        self.score = fitted.score
        self.seconds += fitted.seconds
        self.epochs += fitted.epochs
        self.trained = True
        return fitted

    def judge(self, level: float) -> None:
        """Find out for how many queries it may answer if `level` of the answers are to agree.

        Of the surest answers to queries held out it is the largest share that does, as it looks:
        the gate's calibration promises it. Where nothing tells how sure an answer is, it is the
        share of those that agree.
        """
        began = time.monotonic()
        answers, predictions = self._problem.answers()
        self.judging = time.monotonic() - began
        agreed = agreement_for(self.data.metric, predictions)
        same = agreed(answers, predictions)
        confidence = suited(agreed.kind, answers)
        if confidence == "none":
            self.covered = float(same.mean())
            return
        order = np.argsort(-confidences(confidence, answers), kind="stable")
        right = np.cumsum(same[order]) / np.arange(1, len(order) + 1)
        enough = np.flatnonzero(right >= level)
        self.covered = float((enough[-1] + 1) / len(order)) if len(enough) else 0.0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of its networks."""
        return self._problem.module.state_dict()

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take weights of an earlier training."""
        self._problem.module.load_state_dict(weights)
        self._problem.module.eval()

    def exported(self) -> Exported:
        """Export what goes into a bundle."""
        module, kind = self._problem.module, self.data.output_kind
        if isinstance(module, CodedNetworks):
            return _export_coded(module, self.proposal.network, kind)
        backup = self._export_backup(module)
        return Exported(backup=backup) if self._code is None else self.in_slots(self._code, backup)

    def in_slots(self, code: Code, backup: NewModel) -> Exported:
        """Export the parity model that runs this backup, exported as `backup`, in each slot of
        `code`; queries are of named inputs."""
        model = self._export_stacked(_Slots(self._problem.module, code.k), code, slotwise=True)
        slot = NewModel(
            backup.onnx, f"{backup.network}, one slot", slot=True, signature=backup.signature
        )
        return Exported([model], {}, slot)

    def _export_backup(self, module: nn.Module) -> NewModel:
        teacher, network = self._teacher, self.proposal.network
        kind, dtype = self.data.output_kind, teacher.output.dtype
        if isinstance(module, NamedModule):
            signature = teacher.stand_in()
            module = served(module.served(), kind, dtype)
            content = export(module, signature.inputs, teacher.output.name)
            return NewModel(content, network, signature=signature)
        query_shape = teacher.signature.input.shape
        module = served(plain(module, query_shape), kind, dtype)
        return NewModel(export(module, [floats(query_shape)]), network)

    def _export_stacked(self, module: nn.Module, code: Code, *, slotwise: bool = False) -> NewModel:
        """Export a parity model for k queries of named inputs, stacked along a new axis."""
        network = self.proposal.network
        if not isinstance(module, NamedModule | _Slots):
            raise TrainingError(f"{network} makes no module for named inputs; choose another")
        teacher = self._teacher
        signature = stacked_signature(code, teacher)
        module = served(module.served(), self.data.output_kind, teacher.output.dtype)
        content = export(module, signature.inputs, teacher.output.name)
        return NewModel(content, network, slotwise=slotwise, signature=signature)


def stacked_signature(code: Code, teacher: Teacher) -> Signature:
    """Return the inputs and the output of a parity model over named inputs."""
    output = NamedTensor(teacher.output.name, teacher.output.datatype, code.parity_output_shape)
    return msgspec.structs.replace(
        teacher.signature, inputs=parity_inputs(code, teacher.signature), outputs=(output,)
    )


class _Slots(nn.Module):
    """Takes k queries (n, k, *shape) of each input, gives the answers (n, k, ...) of `network`."""

    def __init__(self, network: nn.Module, k: int) -> None:
        super().__init__()
        self._network = network
        self._k = k

    def served(self) -> nn.Module:
        """Return the module as it is exported."""
        network = self._network
        return _Slots(network.served() if isinstance(network, NamedModule) else network, self._k)

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self._network(*(each.flatten(0, 1) for each in inputs))
        return outputs.reshape(-1, self._k, *outputs.shape[1:])


def _export_coded(module: CodedNetworks, network: str, kind: OutputKind) -> Exported:
    code, float32 = module.code, np.dtype(np.float32)
    models = [
        NewModel(
            export(
                served(plain(one, code.parity_shape), kind, float32), [floats(code.parity_shape)]
            ),
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
        return Exported(models, coders)
    content = export(served(slot, kind, float32), [floats(code.query_shape)])
    if not is_slot(code, OnnxModel(models[0].onnx), OnnxModel(content)):
        return Exported(models, coders)
    return Exported(models, coders, NewModel(content, f"{network}, one slot", slot=True))


def _decodable(data: DistillationData, code: Code) -> DistillationData:
    """Return `data` as the models of `code` can learn them.

    A decoder that does not read predictions off computes with them. So they are learned as F gives
    them, and parity models are served without a softmax or a normalisation.
    """
    if code.decoder.reads_off:
        return data
    plainly: dict[OutputKind, OutputKind] = {"probabilities": "logits", "embeddings": "numbers"}
    return data.learned_as(plainly.get(data.output_kind, data.output_kind))


def build_models(
    network: NetworkPlan, r: int, deployed: nn.Module | None
) -> tuple[nn.ModuleList, bool]:
    """Build r parity models, and say whether they start from weights of the `deployed` model.

    They do where layers are alike. Without `deployed`, networks of this package start from random
    weights drawn as the paper's code draws them.
    """
    models = nn.ModuleList(network.make() for _ in range(r))
    if deployed is None:
        if family(network.name) in NETWORKS.names:  # a user's own is drawn as they like
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


def saving(covered: float, share: float) -> float:
    """Return how much sooner late queries are answered than by a copy, in F's times, on average.

    A stand-in takes `share` of F's time and answers a share `covered` of the queries.
    """
    return covered * max(0.0, 1 - share)
