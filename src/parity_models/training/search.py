"""The search for the best stand-ins: ever fewer candidates are trained for ever longer.

(Successive halving: Jamieson, Talwalkar, AISTATS 2016.) Each rung has a share of the time, which
its candidates divide evenly. Between rungs, candidates that others beat are dropped (`keep`). The
rest continue from where they were, with a new cycle of the learning rate. The state is kept in a
folder, from which a search that was cut off is resumed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.queried import NO_QUERIES, Queried
from parity_models.training.callbacks import Callbacks, Searching
from parity_models.training.candidates import Candidate, Proposal
from parity_models.training.distillation import DistillationData
from parity_models.training.fit import OnProgress, Progress, save_tensors
from parity_models.training.proposals import SLACK
from parity_models.training.recipes import Budget, RunOptions
from parity_models.training.teacher import Teacher

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


class Judged(Protocol):
    """A candidate after some training, as `keep` sees it."""

    @property
    def score(self) -> float: ...
    @property
    def name(self) -> str: ...
    @property
    def coded(self) -> bool: ...
    @property
    def share(self) -> float: ...
    @property
    def saving(self) -> float: ...


def keep(
    judged: Sequence[Judged], most: int, margin: float = MARGINS[-1], least: int = 1
) -> tuple[list[int], dict[int, str]]:
    """Choose at most `most` of the candidates, 2 or more, to be trained further.

    A candidate is dropped if another is no slower and scores better by more than `margin`. If fewer
    than `least` are left, the best of the dropped ones come back: they may learn more slowly. Of
    those left, the best backup and the best parity model that are not slower than F stay, and then
    those that save most. If there is room for two or more of these, the best backup that is surely
    not slower is one of them. Returns the places of those kept, and for the others why not.
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
    slower = sorted(dropped, key=lambda place: -judged[place].score)
    for place in slower[: max(0, least - (len(judged) - len(dropped)))]:
        del dropped[place]
    left = [place for place in range(len(judged)) if place not in dropped]
    fast = [place for place in left if judged[place].share <= SLACK] or left
    anchors = {
        max(those, key=lambda place: judged[place].score)
        for coded in (False, True)
        if (those := [place for place in fast if judged[place].coded == coded])
    }
    ranked = sorted(left, key=lambda place: (place not in anchors, -judged[place].saving))
    backups = [place for place in fast if not judged[place].coded]
    surely = [place for place in backups if judged[place].share <= SURELY]
    best_of_them = max(surely, key=lambda place: judged[place].score, default=None)
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
    return sorted(ranked[:most]), dropped


class Done(msgspec.Struct, frozen=True):
    """A candidate at the end of a rung: how good it was, and how long it was trained until then."""

    score: float
    covered: float
    seconds: float
    epochs: int


class Searched(msgspec.Struct, frozen=True):
    """The proposals, all that determines the search, and each candidate after each rung."""

    options: RunOptions
    proposals: tuple[Proposal, ...]
    done: dict[str, tuple[Done, ...]] = {}


class SearchFolder:
    """The folder of one search. Raises TrainingError where it cannot be written or read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, searched: Searched) -> None:
        """Start anew, and remove what another search left."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make the folder {self.path}: {error.strerror}") from error
        self.clear()
        self.write(searched)

    def clear(self) -> None:
        """Remove all that only resuming needs."""
        for pattern in ("*.safetensors", "*.checkpoint", "*.new", STATE):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def read(self, options: RunOptions) -> Searched:
        """Return the state of a search with these `options`."""
        path = self.path / STATE
        try:
            searched = msgspec.json.decode(path.read_bytes(), type=Searched)
        except FileNotFoundError as error:
            raise TrainingError(
                f"there is nothing to resume in {self.path}; run without --resume"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} is damaged ({error}); run without --resume") from error
        changed = [name for name, was in searched.options.items() if options.get(name) != was]
        if changed:
            flags = " and another ".join(f"--{name}" for name in changed)
            raise TrainingError(
                f"the search in {self.path} was begun with another {flags}; resume it with the "
                "same, or begin anew without --resume"
            )
        return searched

    def write(self, searched: Searched) -> None:
        """Keep the state."""
        beside = self.path / f"{STATE}.new"
        try:
            beside.write_bytes(msgspec.json.encode(searched))
            beside.replace(self.path / STATE)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from error

    def checkpoint(self, proposal: Proposal, rung: int) -> Path:
        """Return the file of a training that is not over."""
        return self.path / f"{proposal.slug}.{rung}.checkpoint"

    def save(self, proposal: Proposal, weights: dict[str, Tensor]) -> None:
        """Keep a candidate's weights."""
        try:
            save_tensors(self._weights(proposal), weights)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from error

    def load(self, proposal: Proposal) -> dict[str, Tensor]:
        """Return the weights that were kept."""
        path = self._weights(proposal)
        try:
            weights: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path} is damaged ({error}); run without --resume") from error
        return weights

    def _weights(self, proposal: Proposal) -> Path:
        return self.path / f"{proposal.slug}.safetensors"


@dataclass(frozen=True)
class Lesson:
    """All that the candidates of a search have in common.

    `model` is F as a module, `level` the agreement that is wanted, `judging` how many seconds F
    takes for the queries that candidates are judged by.
    """

    teacher: Teacher
    model: nn.Module
    data: DistillationData
    level: float
    seed: int
    queried: Queried = NO_QUERIES
    judging: float = 0.0

    def candidate(self, proposal: Proposal) -> Candidate:
        """Build the networks of a proposal."""
        device: torch.device = self.data.inputs.device
        candidate = Candidate(
            proposal, self.teacher, self.model, device, seed=self.seed, queried=self.queried
        )
        candidate.learn_from(self.data)
        candidate.judging = proposal.share * self.judging
        return candidate


@dataclass(frozen=True)
class Found:
    """How a search ended: the candidates that are left, and by name why others are not.

    One that was `interrupted` has what was best until then.
    """

    finalists: list[Candidate]
    dropped: dict[str, str]
    interrupted: bool


class Search:
    """One search among candidates; `searched` is the state to continue from."""

    def __init__(
        self, lesson: Lesson, searched: Searched, folder: SearchFolder, callbacks: Callbacks
    ) -> None:
        self._lesson = lesson
        self._searched = searched
        self._folder = folder
        self._callbacks = callbacks
        self._resumed = dict(searched.done)
        self._dropped: dict[str, str] = {}
        self._interrupted = False
        self._began = self._seconds = 0.0

    def run(self, seconds: float) -> Found:
        """Train for so many more seconds, but each candidate once at least.

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
        for proposal in self._searched.proposals:
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
            best = max((each.score for each in trained), default=None)
            where = Searching(0.0, 0.0, candidate.name, rung, place + 1, len(candidates), best)
            try:
                self._train(candidate, rung, slot, self._reporting(where, slot))
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
            candidate.load(self._folder.load(candidate.proposal))
        return True

    def _train(self, candidate: Candidate, rung: int, seconds: float, report: OnProgress) -> None:
        """Train for so many seconds, in which the candidate is judged, too."""
        proposal, lesson, first = candidate.proposal, self._lesson, not candidate.trained
        checkpoint = self._folder.checkpoint(proposal, rung)
        fitted = candidate.fit(
            Budget(seconds=max(SHORTEST, seconds - candidate.judging)),
            checkpoint,
            options={"rung": rung},
            seed=lesson.seed + rung,
            resume=checkpoint.exists(),
            on_progress=report,
        )
        if first or fitted.best_epoch:
            candidate.judge(lesson.level)
        self._interrupted = fitted.interrupted
        if fitted.interrupted:
            return
        self._folder.save(proposal, candidate.weights)
        now = Done(candidate.score, candidate.covered, candidate.seconds, candidate.epochs)
        done = {proposal.slug: (*self._searched.done.get(proposal.slug, ()), now)}
        self._searched = msgspec.structs.replace(self._searched, done=self._searched.done | done)
        self._folder.write(self._searched)
        checkpoint.unlink(missing_ok=True)

    def _reporting(self, where: Searching, slot: float) -> OnProgress:
        """Return a callback that turns reports of a training into reports of the search."""
        before = time.monotonic() - self._began

        def report(progress: Progress) -> None:
            passed = before + progress.spent * slot
            scores = [each for each in (where.best, progress.best) if each is not None]
            self._callbacks.on_search(
                Searching(
                    min(1.0, passed / self._seconds),
                    max(0.0, self._seconds - passed),
                    where.name,
                    where.rung,
                    where.tried,
                    where.of,
                    max(scores, default=None),
                )
            )

        return report

    def _keep(self, candidates: list[Candidate], most: int, rung: int) -> list[Candidate]:
        kept, dropped = keep(candidates, most, MARGINS[rung], LEAST[rung])
        self._dropped |= {candidates[place].name: why for place, why in dropped.items()}
        return [candidates[place] for place in kept]
