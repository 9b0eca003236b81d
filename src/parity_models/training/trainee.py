"""One candidate of a search: its networks, trained a while at a time."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from parity_models.codes import Code
from parity_models.models.bundle import Bundle, NewModel
from parity_models.models.networks.queried import Queried
from parity_models.models.weights import has_weights
from parity_models.training.backup import exported_backup
from parity_models.training.candidates import Candidate
from parity_models.training.checkpoint import Options
from parity_models.training.device import computing, place
from parity_models.training.fit import Fitted, Report, fit
from parity_models.training.imitation import Imitation
from parity_models.training.learned import CodedNetworks
from parity_models.training.lessons import Lessons
from parity_models.training.parity import (
    ParityModels,
    build_models,
    decodable,
    exported_parity,
)
from parity_models.training.parity_network import parity_network
from parity_models.training.recipes import Recipe, parity_recipe
from parity_models.training.reconstruction import Reconstruction
from parity_models.training.schedule import Budget
from parity_models.training.search_state import Done
from parity_models.training.slots import exported_slots
from parity_models.training.stacked import check_stacked, exported_group
from parity_models.training.stand_in_network import group_network, stand_in_network
from parity_models.training.subject import Subject
from parity_models.training.together import Together
from parity_models.training.worth import coverage, worth

SHORTEST = 0.1
"""Seconds of a training at least, so that some steps are taken."""


@dataclass(frozen=True)
class Teaching:
    """What all candidates of a search learn from: F's bundle, F as a module, and the lessons.

    `queried` says what queries of named inputs are like, `level` is the agreement that is wanted,
    `judging` how many seconds F takes for the queries that candidates are judged by.
    """

    bundle: Bundle
    subject: Subject
    model: nn.Module
    lessons: Lessons
    level: float
    seed: int
    queried: Queried = ()
    judging: float = 0.0


class Trainee:
    """A candidate, its networks, and how good they are: 0 until they are `trained`.

    `judging` is how many seconds it takes to be judged: estimated, until it was.
    """

    def __init__(self, candidate: Candidate, teaching: Teaching) -> None:
        self.candidate = candidate
        self.score = 0.0
        self.covered = 0.0
        self.seconds = 0.0
        self.epochs = 0
        self.trained = False
        self.judging = candidate.share * teaching.judging
        self._teaching = teaching
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(teaching.seed)
            make = _backup if candidate.code is None else _parity
            if candidate.code is not None and not teaching.subject.plain:
                make = _together
            self._problem, self._recipe, self.lessons = make(candidate, teaching)

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def coded(self) -> bool:
        return self.candidate.code is not None

    @property
    def share(self) -> float:
        return self.candidate.share

    @property
    def worth(self) -> float:
        return worth(self.covered, self.share)

    @property
    def recipe(self) -> Options:
        """What determines the networks besides data, chance and time."""
        options: Options = {**self._recipe.options, "network": self.candidate.network}
        options |= {"metric": self.lessons.metric, "output_kind": self.lessons.output_kind}
        return options

    def train(
        self, seconds: float, rung: int, checkpoint: Path, resume: bool, report: Report | None
    ) -> Fitted:
        """Go on for so many seconds, in which it is judged, too, with a learning rate that is
        annealed by then.

        What it was before is kept where that was better.
        """
        known = self.score if self.trained else None
        with computing(self._recipe.threaded):
            fitted = fit(
                self._problem,
                self._recipe.schedule,
                Budget(seconds=max(SHORTEST, seconds - self.judging)),
                seed=self._teaching.seed + rung,
                checkpoint=checkpoint,
                options=self.recipe | {"rung": rung},
                resume=resume,
                report=report,
                began=time.monotonic(),
                known=known,
            )
        if fitted.best_epoch or known is None:
            self.score = fitted.score
            self.judge()
        self.seconds += fitted.seconds
        self.epochs += fitted.epochs
        self.trained = True
        return fitted

    def judge(self) -> None:
        """Find out for how many queries it may answer, as it looks."""
        began = time.monotonic()
        answers, predictions = self._problem.answers()
        self.judging = time.monotonic() - began
        self.covered = coverage(self.lessons.metric, answers, predictions, self._teaching.level)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights."""
        return self._problem.module.state_dict()

    @property
    def done(self) -> Done:
        """What it is by now."""
        return Done(self.score, self.covered, self.seconds, self.epochs)

    def restore(self, done: Done, weights: dict[str, torch.Tensor] | None) -> None:
        """Be as after an earlier training; with its weights, if it was the last one."""
        self.score, self.covered = done.score, done.covered
        self.seconds, self.epochs = done.seconds, done.epochs
        self.trained = True
        if weights is not None:
            self._problem.module.load_state_dict(weights)
            self._problem.module.eval()

    def exported(self) -> NewModel | ParityModels:
        """What goes into a bundle: a backup, or the models of a code."""
        network, kind = self.candidate.network, self.lessons.output_kind
        module = self._problem.module
        if isinstance(module, CodedNetworks):
            return exported_parity(module, network, kind)
        subject = self._teaching.subject
        if self.candidate.code is None:
            return exported_backup(module, network, subject, kind)
        code = check_stacked(self.candidate.code, subject)
        return exported_group(module, network, subject, kind, code)

    def in_slots(self, code: Code, alone: NewModel) -> ParityModels:
        """The parity model that runs this backup for named inputs, exported as `alone`, in each
        slot of `code`."""
        kind, subject = self.lessons.output_kind, self._teaching.subject
        return exported_slots(self._problem.module, alone, subject, kind, code)


Made = tuple[Imitation | Reconstruction | Together, Recipe, Lessons]


def _backup(candidate: Candidate, teaching: Teaching) -> Made:
    lessons = teaching.lessons
    network = stand_in_network(candidate.network, teaching.subject, lambda: teaching.queried)
    recipe = network.recipe
    lessons = lessons if recipe.mirror else lessons.unmirrored()
    module = place(network.make(), lessons.inputs.device)
    steps = recipe.steps_per_epoch(len(lessons.inputs))
    foreign = not has_weights(teaching.bundle)
    return Imitation(module, lessons, steps=steps, foreign=foreign), recipe, lessons


def _together(candidate: Candidate, teaching: Teaching) -> Made:
    assert candidate.code is not None
    k, lessons = candidate.code.k, teaching.lessons
    network = group_network(candidate.network, teaching.subject, lambda: teaching.queried, k)
    module = place(network.make(), lessons.inputs.device)
    return Together.of(module, lessons, k, network.recipe), network.recipe, lessons


def _parity(candidate: Candidate, teaching: Teaching) -> Made:
    assert candidate.code is not None
    shapes, lessons = teaching.bundle.manifest.deployed, teaching.lessons
    code = Code(candidate.code, shapes.input.shape, shapes.output.shape)
    plan = parity_network(candidate.network, code)
    recipe = parity_recipe(plan.recipe, "distilled", code)
    lessons = decodable(lessons if recipe.mirror else lessons.unmirrored(), code)
    models, started = build_models(plan, code.r, teaching.model)
    module = place(CodedNetworks(models, code), lessons.inputs.device)
    problem = Reconstruction(
        module,
        lessons,
        steps=recipe.steps_per_epoch(len(lessons.inputs) // code.k),
        style=recipe.style,
        foreign=not started and not has_weights(teaching.bundle),
    )
    return problem, recipe, lessons
