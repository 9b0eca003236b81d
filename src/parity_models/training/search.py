"""The search for the best backups: ever fewer candidates are trained for ever longer.

(Successive halving: Jamieson, Talwalkar, AISTATS 2016.) Each rung has a share of the time, which
its candidates divide evenly. Between rungs, candidates that others beat are dropped. The rest
continue from where they were, with a new cycle of the learning rate.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import nn

from parity_models.bundle.inference_time import inference_times
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.progress import Callbacks, Progress
from parity_models.tensors.signature import Array, Batch, Sizes, padded
from parity_models.training.candidates import Candidate, Exported, TrainingContext, code_for
from parity_models.training.device import Rows, choose_device
from parity_models.training.distillation import DistillationData
from parity_models.training.export import export
from parity_models.training.fit import Budget
from parity_models.training.network_plans import parity_network, single_network
from parity_models.training.networks import NETWORKS, family
from parity_models.training.networks.network import EachSlot
from parity_models.training.networks.queried import Queried
from parity_models.training.teacher import HELD_OUT, Queries, Teacher, TrainingOptions
from parity_models.trust.gate import AGREEMENT

SLACK = 1.02
"""The factor by which measurements of equally fast models differ."""


def propose(teacher: Teacher, queried: Queried, sizes: Sizes) -> dict[str, float]:
    """Propose networks of backups for a deployed model, the most promising first: the most capable
    one that is not slower than the model, the fastest, and the ones between.

    Returns the time of each for queries of these `sizes`, as a share of F's. The fastest is always
    among them. Raises TrainingError if no network can take the queries.
    """
    shares = measure_networks(teacher, queried, sizes)
    fast = not_slower(shares)[::-1]
    return {name: shares[name] for name in [fast[0], *fast[1:][-1:], *fast[1:-1]]}


def propose_network(teacher: Teacher, spec: CodeSpec, queried: Queried, sizes: Sizes) -> str:
    """Choose the network of parity models if none is named.

    It is the deployed model's if the bundle holds its weights, which training then starts from.
    Else it is the most capable that takes no longer than the deployed model for one query, by times
    measured here, or the fastest if all take longer: a slower one would make its instances a
    bottleneck. Networks are measured for queries of these `sizes`.
    """
    code = code_for(spec, teacher)
    own = teacher.bundle.manifest.deployed.network
    if not teacher.foreign and family(own) in NETWORKS.names:
        return own
    return not_slower(measure_networks(teacher, queried, sizes, code))[-1]


def not_slower(shares: Mapping[str, float]) -> list[str]:
    """Return the networks that are not slower than the model or, if all are, the fastest."""
    fast = [name for name, share in shares.items() if share <= SLACK]
    return fast or [min(shares, key=lambda name: shares[name])]


def measure_networks(
    teacher: Teacher, queried: Queried, sizes: Sizes, code: Code | None = None
) -> dict[str, float]:
    """Return the times of networks for single queries, or parity queries of a code, as shares of
    the deployed model's.

    If that is elsewhere, they are shares of the slowest network's. All networks that can take them
    are measured in ONNX Runtime; within a family, each is slower and better than the one before.
    They learn in minutes from some ten thousand queries. Raises TrainingError if there are none.
    """
    modules: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for name in (name for kind in NETWORKS for name in kind.proposals(queried)):
            with suppress(TrainingError):  # it cannot take such queries
                if code is not None and not code.by_slot:
                    modules[name] = parity_network(name, code).make()
                    continue
                single = single_network(name, queried, teacher.output.shape).make()
                modules[name] = single if code is None else EachSlot(single, code.k)
    if not modules:
        raise TrainingError(
            f"no network of this package learns from {teacher.signature}; name one of your own, or "
            "train one and bundle it (parm bundle --backup)"
        )
    deployed, signature = teacher.bundle.manifest.deployed, teacher.stand_in(code, "FP32")
    models = []
    if not deployed.elsewhere:
        models.append(OnnxModel(teacher.bundle.content(deployed), signature=deployed.signature))
    for module in modules.values():
        content = export(module, signature.inputs, signature.outputs[0].name)
        models.append(OnnxModel(content, signature=signature))
    times = inference_times(models, sizes=sizes)
    base, measured = (max(times), times) if deployed.elsewhere else (times[0], times[1:])
    return {name: ms / base for name, ms in zip(modules, measured, strict=True)}


# The search

RUNGS = (0.2, 0.3, 0.5)
"""The share of the time of each rung."""

MARGINS = (0.03, 0.01, 0.005)
"""The difference of scores after a rung that chance explains: larger after less training."""

FINALISTS = 4
"""The most candidates that are trained to the end."""

LEAST = (FINALISTS, 2, 1)
"""The fewest candidates kept after each rung: a slow learner may be the best in the end."""

LEAST_SECONDS = 1.0
"""The least time for a candidate in the first rung; if there is not enough, fewer are tried."""

SHORTEST = 0.1
"""The shortest training in seconds, so that some steps are taken."""


def drop(
    judged: Sequence[Candidate], most: int, margin: float = MARGINS[-1], least: int = 1
) -> dict[int, str]:
    """Return the places of candidates to drop, with reasons, so that at most `most` are left.

    A candidate is dropped if another is no slower and scores better by more than `margin`. If fewer
    than `least` are left, the best of the dropped ones come back: they may learn more slowly. Of
    those left, the best that is not slower than F stays, and then those that save most.
    """
    dropped: dict[int, str] = {}
    for place, one in enumerate(judged):
        better = [
            other
            for other in judged
            if other.share <= one.share and other.score > one.score + margin
        ]
        if better:
            best = max(better, key=lambda each: each.score)
            dropped[place] = (
                f"{best.name} is no slower ({best.share:.2f} of the model's time, not "
                f"{one.share:.2f}) and scores {best.score:.1%}, not {one.score:.1%}"
            )

    def score(place: int) -> float:
        return judged[place].score

    slower = sorted(dropped, key=score, reverse=True)
    for place in slower[: max(0, least - (len(judged) - len(dropped)))]:
        del dropped[place]
    left = [place for place in range(len(judged)) if place not in dropped]
    fast = [place for place in left if judged[place].share <= SLACK] or left
    best_of_all = max(fast, key=score)
    ranked = sorted(left, key=lambda place: (place != best_of_all, -judged[place].saving))
    for place in ranked[most:]:
        one = judged[place]
        dropped[place] = (
            f"{most} others are worth more: it saves {one.saving:.2f} of the model's time for a "
            f"late query (score {one.score:.1%}, {one.share:.2f} of the time)"
        )
    return dropped


class Search:
    """One search for backups, of some seconds.

    After `run`, `finalists` are the candidates that are left, and `dropped` gives reasons against
    others, by name. If the search was `interrupted`, they are the best until then.
    """

    def __init__(self, context: TrainingContext, seconds: float, callbacks: Callbacks) -> None:
        self.finalists: list[Candidate] = []
        self.dropped: dict[str, str] = {}
        self.interrupted = False
        self._context = context
        self._callbacks = callbacks
        self._began, self._seconds = time.monotonic(), seconds

    def run(self, proposals: Mapping[str, float]) -> Self:
        """Train backups of the proposed networks, each at least once. Return the search.

        Raises TrainingError if no candidate could be trained, and KeyboardInterrupt if Ctrl-C came
        before the first was.
        """
        left, end = self._entrants(proposals), self._began
        try:
            for rung, share in enumerate(RUNGS):
                end += share * self._seconds
                self._rung(left, rung, end)
                left = [each for each in left if each.name not in self.dropped]
                if not left:
                    raise TrainingError(
                        "no candidate could be trained; run `parm backup` to see why"
                    )
                if rung < len(RUNGS) - 1:
                    left = self._keep(left, rung)
        except KeyboardInterrupt:
            self.interrupted, left = True, [each for each in left if each.trained]
            if not left:
                raise
        self.finalists = self._keep(left, len(RUNGS) - 1)
        return self

    def _entrants(self, proposals: Mapping[str, float]) -> list[Candidate]:
        """Return the candidates that there is time for in the first rung, at least two."""
        most = max(2, int(RUNGS[0] * self._seconds / LEAST_SECONDS))
        for network in [*proposals][most:]:
            self.dropped[f"backup {network}"] = "not tried: there are not enough minutes"
        entrants = [*proposals.items()][:most]
        return [Candidate(name, self._context, share=share) for name, share in entrants]

    def _rung(self, candidates: Sequence[Candidate], rung: int, end: float) -> None:
        """Train each until `end` at the latest; drop any that cannot be trained."""
        for place, candidate in enumerate(candidates):
            slot = max(0.0, (end - time.monotonic()) / (len(candidates) - place))
            if rung > 0 and not slot:  # it stays as it is
                continue
            where = f"round {rung + 1}, {candidate.name} ({place + 1} of {len(candidates)})"
            first = not candidate.trained
            try:
                fitted = candidate.fit(
                    Budget(seconds=max(SHORTEST, slot)),
                    seed=self._context.seed + rung,
                    on_progress=partial(self._report, where),
                )
                if first or fitted.best_epoch:
                    candidate.judge()
                if fitted.interrupted:
                    raise KeyboardInterrupt
            except TrainingError as error:
                self.dropped[candidate.name] = str(error)

    def _report(self, where: str, progress: Progress) -> None:
        """Report the progress of a training as that of the search."""
        passed = time.monotonic() - self._began
        done, left = min(1.0, passed / self._seconds), max(0.0, self._seconds - passed)
        self._callbacks.on_progress(
            replace(progress, work="search", done=done, said=where, seconds_left=left)
        )

    def _keep(self, candidates: list[Candidate], rung: int) -> list[Candidate]:
        dropped = drop(candidates, FINALISTS, MARGINS[rung], LEAST[rung])
        self.dropped |= {candidates[place].name: why for place, why in dropped.items()}
        return [each for place, each in enumerate(candidates) if place not in dropped]


def search_log(
    teacher: Teacher, queries: Batch, targets: Array, options: TrainingOptions, callbacks: Callbacks
) -> Exported:
    """Return the best backup for a model that is elsewhere, by its outputs for `queries`, after
    `options.seconds`."""
    signature, device = teacher.signature, choose_device(options.device)
    rows, outputs = padded(queries, signature, ()), torch.from_numpy(targets).to(device)
    cut = len(targets) // HELD_OUT
    learned = Queries(rows[cut:], rows[:cut], metric=options.metric)
    inputs, held_out = (Rows.of(each, signature, device) for each in (rows[cut:], rows[:cut]))
    data = DistillationData.of(learned, inputs, outputs[None, cut:], held_out, outputs[:cut])
    queried, model = teacher.describe(rows), nn.Identity()
    context = TrainingContext(teacher, model, learned, data, queried, options.seed, AGREEMENT)
    assert options.seconds is not None
    found = Search(context, options.seconds, callbacks).run(propose(teacher, queried, ()))
    return max(found.finalists, key=lambda each: (each.covered, each.score)).exported()
