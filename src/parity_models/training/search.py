"""The search for the best stand-ins: ever fewer candidates are trained for ever longer.

(Successive halving: Jamieson, Talwalkar, AISTATS 2016.) Each rung has a share of the time, which
its candidates divide evenly. Between rungs, candidates that others beat are dropped. The rest
continue from where they were, with a new cycle of the learning rate. The state is kept in a folder,
from which a search that was cut off is resumed.

Candidates are proposed by the time that networks would take: backups around F's time divided by 1,
1.5, 2, 4, 10 and 30, parity models around F's time, for k = 2, 3 and 4, so that a backup of the
same cost says what the code adds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError, TrainingError
from parity_models.models.export import export
from parity_models.models.gate import AnsweredClass
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.network import NamedModule, Scalable
from parity_models.models.networks.queried import Queried
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.training.callbacks import Callbacks
from parity_models.training.candidates import Candidate, Proposal, code_for
from parity_models.training.distillation import DistillationData
from parity_models.training.fit import Budget, OnProgress, Progress, RunOptions, save_tensors
from parity_models.training.networks import parity_network, single_network
from parity_models.training.teacher import Teacher

Times = Callable[..., list[float]]
"""Milliseconds that each of some models takes for a batch, measured side by side."""

DIVISORS = (1, 4, 10, 2, 30, 1.5)
"""F's time is divided by these, the most telling first."""

SLACK = 1.02
"""The factor by which measurements of equally fast models differ."""

NARROWEST = 0.45
"""A network that takes less than this share of the wanted time is not proposed for it."""

WIDTHS = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Multiples of channels or hidden units that are tried of a network which has them."""

CODES = (
    CodeSpec("stack", "separate", 2),
    CodeSpec("stack", "separate", 4),
    CodeSpec("stack", "separate", 3),
    CodeSpec("concatenation", "separate", 2),
    CodeSpec("sum", "subtraction", 2),
)
"""Codes that are tried, the most promising first."""


def propose(teacher: Teacher, queried: Queried, sizes: Sizes) -> list[Proposal]:
    """Propose stand-ins for a deployed model, the most promising first.

    The fastest network there is is always among them, even where it is slower than F. For queries
    of named inputs they are backups, measured for queries of these `sizes`; for arrays each is the
    widest network of its family that does not take longer than it may. Raises TrainingError where
    no network can take the queries.
    """
    costs = Costs(teacher, queried, sizes)
    return propose_by(costs) if teacher.plain else propose_named(costs)


def propose_network(teacher: Teacher, spec: CodeSpec, queried: Queried, sizes: Sizes) -> str:
    """Choose the network of parity models where none is named.

    It is the deployed model's if the bundle holds its weights, which training then starts from.
    Else it is the most capable that takes no longer than the deployed model for one query, by times
    measured here, or the fastest if all take longer: a slower one would make its instances a
    bottleneck.
    """
    code_for(spec, teacher)
    own = teacher.bundle.manifest.deployed.network
    if teacher.plain and not teacher.foreign and family(own) in NETWORKS.names:
        return own
    costs = Costs(teacher, queried, sizes)
    shares = {name: costs.share(name, spec) for name in network_names(queried)}
    fitting = {name: share for name, share in shares.items() if share is not None}
    fast = [name for name, share in fitting.items() if share <= SLACK]
    return fast[-1] if fast else min(fitting, key=fitting.__getitem__)


def network_names(queried: Queried) -> list[str]:
    """Return the networks for such queries, each slower than those before it, and better.

    All learn in minutes from some ten thousand queries.
    """
    return [name for kind in NETWORKS for name in kind.proposals(queried)]


class Costs:
    """Times of networks for a deployed model's queries, as shares of that model's time.

    Networks for single queries of named inputs are all measured in ONNX Runtime. Of those for
    arrays, in each family, the cheapest first, the narrowest and the usual one are; others lie
    between or beyond, by how much they compute. Networks that cannot take the queries have no cost.
    """

    def __init__(
        self, teacher: Teacher, queried: Queried, sizes: Sizes, times: Times = inference_times
    ) -> None:
        self._teacher, self._queried = teacher, queried
        names = network_names(queried)
        self.families = list(dict.fromkeys(map(family, names)))
        if teacher.plain:
            names = [name for each in self.families for name in _measured(each)]
        modules: dict[str, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            for name in names:
                if (module := self._build(name)) is not None:
                    modules[name] = module
        if not modules:
            raise TrainingError(
                f"no network of this package learns from {teacher.signature}; train one of your "
                "own and bundle it (parm bundle --backup)"
            )
        deployed, signature = teacher.bundle.manifest.deployed, teacher.stand_in("FP32")
        models = [OnnxModel(teacher.bundle.content(deployed), signature=deployed.signature)]
        for module in modules.values():
            served = module.served() if isinstance(module, NamedModule) else module
            content = export(served, signature.inputs, signature.outputs[0].name)
            models.append(OnnxModel(content, signature=signature))
        base, *measured = times(models, sizes=sizes)
        self.shares = {name: ms / base for name, ms in zip(modules, measured, strict=True)}
        self._work = {name: self._computes(name, None) or 0 for name in modules if teacher.plain}

    def share(self, network: str, code: CodeSpec | None) -> float | None:
        """Return the time of one run of `network`, for parity queries of `code` or single queries.

        None for a network that cannot take those, or is of no family that was measured.
        """
        if not self._teacher.plain:
            share = self.shares.get(network)
            return share if share is None or code is None else code.k * share
        usual = family(network)
        work = self._computes(network, code) if usual in self.shares else None
        if work is None:
            return None
        narrow = _measured(usual)[0]
        base, base_work = self.shares[narrow], self._work[narrow]
        more = self._work[usual] - base_work
        if more <= 0:
            return base * max(1.0, work / max(1, base_work))
        slope = max(0.0, self.shares[usual] - base) / more
        return base + slope * max(0, work - base_work)

    def _build(self, network: str, code: Code | None = None) -> nn.Module | None:
        """Return a network for single queries, or for a code; None if it cannot take those."""
        try:
            if code is not None:
                return parity_network(network, code).make()
            return single_network(network, self._queried, self._teacher.output.shape).make()
        except TrainingError:
            return None

    def _computes(self, network: str, spec: CodeSpec | None) -> int | None:
        """Return the operations of one run; None for a network that cannot take the queries."""
        code = None if spec is None else code_for(spec, self._teacher)
        with torch.device("meta"):
            module = self._build(network, code)
        if module is None:
            return None
        shape = self._queried.shape if code is None else code.parity_shape
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape, device="meta"))
        return int(counter.get_total_flops())

    def around(self, share: float, code: CodeSpec | None) -> Iterator[Proposal]:
        """Yield the widest network of each family that takes at most about `share` of F's time.

        The most capable family comes first; none of a family whose widest is far faster.
        """
        for name in reversed(self.families):
            widths = WIDTHS if issubclass(NETWORKS.find(name), Scalable) else (1.0,)
            for width in reversed(widths):
                network = name if width == 1 else f"{name}@{width:g}"
                taken = self.share(network, code)
                if taken is not None and NARROWEST * share < taken <= SLACK * share:
                    yield Proposal(network, code, taken)
                    break

    def codes(self) -> Iterator[CodeSpec]:
        """Yield the CODES that the queries can have."""
        for spec in CODES:
            try:
                code_for(spec, self._teacher)
            except CodeError:
                continue
            yield spec


def _measured(name: str) -> tuple[str, ...]:
    """Return the networks of a family that are measured: the narrowest, if any, and the usual."""
    if issubclass(NETWORKS.find(name), Scalable):
        return f"{name}@{WIDTHS[0]:g}", name
    return (name,)


def propose_named(costs: Costs) -> list[Proposal]:
    """Propose all backups that are not slower than the model that `costs` are relative to."""
    measured = [Proposal(name, share=share) for name, share in costs.shares.items()]
    fast = [each for each in measured if each.share <= SLACK]
    return fast[::-1] or [min(measured, key=lambda each: each.share)]


def propose_by(costs: Costs) -> list[Proposal]:
    """Propose stand-ins for the model that `costs` are relative to, the most promising first."""
    backups = [list(costs.around(1 / divisor, None)) for divisor in DIVISORS]
    parity = [each for code in costs.codes() for each in list(costs.around(1.0, code))[:1]]
    first = [each[0] for each in backups if each]
    others = [each[1] for each in backups if len(each) > 1]
    shares = {name: costs.share(name, None) for name in costs.families}
    least = next(Proposal(name, None, share) for name, share in shares.items() if share is not None)
    rest = [each for pair in zip_longest(parity[1:], others) for each in pair if each is not None]
    found = [*first[:2], least, *parity[:1], *first[2:], *rest]
    return list({each.slug: each for each in found}.values())


# The search

RUNGS = (0.2, 0.3, 0.5)
"""The share of the time that each rung has."""

MARGINS = (0.03, 0.01, 0.005)
"""The difference of scores after a rung that chance explains: larger after less training."""

FINALISTS = 4
"""The most candidates that are trained to the end."""

LEAST = (FINALISTS, 2, 1)
"""The fewest candidates that are kept after each rung, if there are that many: a slow learner may
be the best in the end."""

LEAST_SECONDS = 1.0
"""The least time for a candidate in the first rung; if there is not enough, fewer are tried."""

JUDGED = 2.0
"""A candidate also needs at least this many times the seconds that judging it takes."""

SHORTEST = 0.1
"""Seconds of a training at least, so that some steps are taken."""

SURELY = 0.9
"""A candidate that is estimated to take at most this share of F's time is surely not slower than F:
networks of microseconds were measured at up to a tenth more than estimated."""

STATE = "search.json"


def drop(
    judged: Sequence[Candidate], most: int, margin: float = MARGINS[-1], least: int = 1
) -> dict[int, str]:
    """Choose all but at most `most` of the candidates, 2 or more, to be trained no further.

    A candidate is dropped if another is no slower and scores better by more than `margin`. If fewer
    than `least` are left, the best of the dropped ones come back: they may learn more slowly. Of
    those left, the best backup and the best parity model that are not slower than F stay, and then
    those that save most. If there is room for two or more of these, the best backup that is surely
    not slower is one of them. Returns the places of those dropped, and why.
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
    backups = [place for place in fast if not judged[place].coded]
    coded = [place for place in fast if judged[place].coded]
    anchors = {max(those, key=score) for those in (backups, coded) if those}
    ranked = sorted(left, key=lambda place: (place not in anchors, -judged[place].saving))
    surely = [place for place in backups if judged[place].share <= SURELY]
    best_of_them = max(surely, key=score, default=None)
    room = len(anchors) + 1
    if best_of_them in ranked[room:]:
        ranked.remove(best_of_them)
        ranked.insert(room, best_of_them)
    for place in ranked[most:]:
        one = judged[place]
        dropped[place] = (
            f"{most} others are worth more: it saves {one.saving:.2f} of the model's time for a "
            f"late query (score {one.score:.1%}, {one.share:.2f} of the time)"
        )
    return dropped


class Done(msgspec.Struct, frozen=True):
    """A candidate at the end of a rung: how good it was, and how long it was trained until then."""

    score: float
    covered: float
    seconds: float
    epochs: int


class Searched(msgspec.Struct):
    """The proposals, all that determines the search, and each candidate after each rung."""

    options: RunOptions
    proposals: tuple[Proposal, ...] = ()
    done: dict[str, tuple[Done, ...]] = {}


@dataclass(frozen=True)
class Lesson:
    """All that the candidates of a search have in common.

    `model` is F as a module, `queried` describes its queries, `level` is the agreement that is
    wanted, of the classes to `answer_only` if there are some, `judging` how many seconds F takes
    for the queries that candidates are judged by.
    """

    teacher: Teacher
    model: nn.Module
    data: DistillationData
    queried: Queried
    level: float
    seed: int
    judging: float = 0.0
    answer_only: tuple[AnsweredClass, ...] = ()

    def candidate(self, proposal: Proposal) -> Candidate:
        """Build the networks of a proposal."""
        device: torch.device = self.data.inputs.device
        candidate = Candidate(
            proposal, self.teacher, self.model, device, self.queried, seed=self.seed
        )
        candidate.learn_from(self.data)
        candidate.judging = proposal.share * self.judging
        return candidate


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the candidates that are left, and reasons against others, by name.

    If the search was `interrupted`, they are the best until then.
    """

    finalists: list[Candidate]
    dropped: dict[str, str]
    interrupted: bool


class Search:
    """One search among candidates, whose state is in `folder`; `options` determine it.

    `begin` or `resume` comes first, then `run`. Raises TrainingError where the folder cannot be
    written or read.
    """

    def __init__(
        self, lesson: Lesson, folder: Path, options: RunOptions, callbacks: Callbacks
    ) -> None:
        self.state = Searched(options)
        self._lesson = lesson
        self._folder = folder
        self._callbacks = callbacks
        self._resumed: dict[str, tuple[Done, ...]] = {}
        self._dropped: dict[str, str] = {}
        self._interrupted = False
        self._began = self._seconds = 0.0

    def begin(self, proposals: Sequence[Proposal]) -> None:
        """Start anew with these proposals, and remove what another search left."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make the folder {self._folder}: {error.strerror}"
            ) from error
        self.clear()
        self.state.proposals = tuple(proposals)
        self._write()

    def resume(self) -> None:
        """Continue from the state in the folder, which has to be of a search with these options."""
        path = self._folder / STATE
        try:
            state = msgspec.json.decode(path.read_bytes(), type=Searched)
        except FileNotFoundError as error:
            raise TrainingError(
                f"there is nothing to resume in {self._folder}; run without --resume"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} is damaged ({error}); run without --resume") from error
        options = self.state.options
        changed = [name for name, was in state.options.items() if options.get(name) != was]
        if changed:
            flags = " and another ".join(f"--{name}" for name in changed)
            raise TrainingError(
                f"the search in {self._folder} was begun with another {flags}; resume it with the "
                "same, or begin anew without --resume"
            )
        self.state = state
        self._resumed = dict(state.done)

    def clear(self) -> None:
        """Remove all that only resuming needs."""
        for pattern in ("*.safetensors", "*.checkpoint", "*.new", STATE):
            for file in self._folder.glob(pattern):
                file.unlink(missing_ok=True)

    def run(self, seconds: float) -> Found:
        """Train for this many more seconds, and each candidate at least once.

        Raises TrainingError if no candidate could be trained.
        """
        spent = sum(done[-1].seconds for done in self._resumed.values())
        self._began = time.monotonic() - spent
        self._seconds = seconds + spent
        left = self._entrants()
        end = self._began
        for rung, share in enumerate(RUNGS):
            end += share * self._seconds
            left = self._rung(left, rung, end)
            if self._interrupted:
                break
            if rung < len(RUNGS) - 1:
                most = max(FINALISTS, len(left) // 2) if rung == 0 else FINALISTS
                left = self._keep(left, most, rung)
        finalists = self._keep(left, FINALISTS, len(RUNGS) - 1)
        return Found(finalists, self._dropped, self._interrupted)

    def _entrants(self) -> list[Candidate]:
        """Return those that there is time for in the first rung, two at least, and those that were
        in it before."""
        entrants: list[Candidate] = []
        left = RUNGS[0] * self._seconds
        for proposal in self.state.proposals:
            left -= max(LEAST_SECONDS, JUDGED * proposal.share * self._lesson.judging)
            if left >= 0 or len(entrants) < 2 or proposal.slug in self._resumed:
                entrants.append(self._lesson.candidate(proposal))
            else:
                self._dropped[proposal.name] = "not tried: there are not enough --minutes"
        return entrants

    def _rung(self, candidates: Sequence[Candidate], rung: int, end: float) -> list[Candidate]:
        """Train each until `end` at the latest; return those that could be trained."""
        trained: list[Candidate] = []
        for place, candidate in enumerate(candidates):
            slot = max(0.0, (end - time.monotonic()) / (len(candidates) - place))
            too_short = rung > 0 and slot <= JUDGED * candidate.judging
            if self._restored(candidate, rung) or too_short:  # it stays as it is
                trained.append(candidate)
                continue
            best = max((each.score for each in trained), default=0.0)
            where = f"round {rung + 1}, {candidate.name} ({place + 1} of {len(candidates)})"
            try:
                self._train(candidate, rung, slot, self._reporting(where, slot, best))
            except TrainingError as error:
                self._dropped[candidate.name] = str(error)
                continue
            except KeyboardInterrupt:  # before or after its epochs: its state before counts
                self._interrupted = True
            if candidate.trained:
                trained.append(candidate)
            if self._interrupted and rung > 0:
                return list(candidates)
            if self._interrupted:
                if not trained:
                    raise KeyboardInterrupt
                return trained
        if not trained:
            raise TrainingError("no candidate could be trained; see what `parm parity` says of it")
        return trained

    def _restored(self, candidate: Candidate, rung: int) -> bool:
        """Restore the candidate if this rung was over for it when the search was cut off."""
        done = self._resumed.get(candidate.proposal.slug, ())
        if rung >= len(done):
            return False
        found = done[rung]
        candidate.score, candidate.covered = found.score, found.covered
        candidate.seconds, candidate.epochs = found.seconds, found.epochs
        candidate.trained = True
        if rung == len(done) - 1:
            path = self._weights(candidate.proposal)
            try:
                candidate.load(load_file(path))
            except (OSError, SafetensorError) as error:
                raise TrainingError(f"{path} is damaged ({error}); run without --resume") from error
        return True

    def _train(self, candidate: Candidate, rung: int, seconds: float, report: OnProgress) -> None:
        """Train for this many seconds, including the time to judge the candidate."""
        proposal, lesson, first = candidate.proposal, self._lesson, not candidate.trained
        checkpoint = self._folder / f"{proposal.slug}.{rung}.checkpoint"
        fitted = candidate.fit(
            Budget(seconds=max(SHORTEST, seconds - candidate.judging)),
            checkpoint,
            options={"rung": rung},
            seed=lesson.seed + rung,
            resume=checkpoint.exists(),
            on_progress=report,
        )
        if first or fitted.best_epoch:
            candidate.judge(lesson.level, lesson.answer_only)
        self._interrupted = fitted.interrupted
        if fitted.interrupted:
            return
        try:
            save_tensors(self._weights(proposal), candidate.weights)
        except OSError as error:
            raise TrainingError(f"cannot write {self._folder}: {error.strerror}") from error
        now = Done(candidate.score, candidate.covered, candidate.seconds, candidate.epochs)
        self.state.done[proposal.slug] = (*self.state.done.get(proposal.slug, ()), now)
        self._write()
        checkpoint.unlink(missing_ok=True)

    def _weights(self, proposal: Proposal) -> Path:
        return self._folder / f"{proposal.slug}.safetensors"

    def _write(self) -> None:
        new = self._folder / f"{STATE}.new"
        try:
            new.write_bytes(msgspec.json.encode(self.state))
            new.replace(self._folder / STATE)
        except OSError as error:
            raise TrainingError(f"cannot write {self._folder}: {error.strerror}") from error

    def _reporting(self, where: str, slot: float, best: float) -> OnProgress:
        """Return a callback that turns reports of a training into reports of the search."""
        before = time.monotonic() - self._began

        def report(progress: Progress) -> None:
            passed = before + progress.spent * slot
            report = replace(
                progress,
                spent=min(1.0, passed / self._seconds),
                seconds_left=max(0.0, self._seconds - passed),
                best=max(best, progress.best or 0.0),
            )
            self._callbacks.on_search(report, where)

        return report

    def _keep(self, candidates: list[Candidate], most: int, rung: int) -> list[Candidate]:
        dropped = drop(candidates, most, MARGINS[rung], LEAST[rung])
        self._dropped |= {candidates[place].name: why for place, why in dropped.items()}
        return [each for place, each in enumerate(candidates) if place not in dropped]
