"""The search for the best stand-ins: ever fewer candidates are trained for ever longer.

(Successive halving: Jamieson, Talwalkar, AISTATS 2016.) Each rung has a share of the time, which
its candidates divide evenly. Between rungs, candidates that others beat are dropped
(`halving.keep`). The rest go on from where they were, with a new cycle of the learning rate.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from parity_models.errors import TrainingError
from parity_models.training.fit import Progress, Report
from parity_models.training.halving import MARGIN, keep
from parity_models.training.search_state import Searched, SearchFolder
from parity_models.training.trainee import Teaching, Trainee

RUNGS = (0.2, 0.3, 0.5)
"""The share of the time that each rung has."""

MARGINS = (0.03, 0.01)
"""The difference of scores after a rung that chance explains: larger after less training."""

FINALISTS = 4
"""The most candidates that are trained to the end."""

LEAST = (FINALISTS, 2)
"""The fewest candidates that go on after each rung, if there are that many: a slow learner may be
the best in the end."""

LEAST_SECONDS = 1.0
"""The least time for a candidate in the first rung; if there is not enough, fewer are tried."""

JUDGED = 2.0
"""A candidate also needs at least this many times the seconds that judging it takes."""


@dataclass(frozen=True)
class Searching:
    """Where a search is: `spent` is the share of its time, `rung` counts from 0.

    `best` is the best score of the rung so far.
    """

    spent: float
    seconds_left: float
    name: str
    rung: int
    tried: int
    of: int
    best: float | None


@dataclass(frozen=True)
class Found:
    """How a search ended: the trainees that are left, and by candidate's name why others are not.

    One that was `interrupted` has what was best until then.
    """

    finalists: list[Trainee]
    dropped: dict[str, str]
    interrupted: bool


class Search:
    """One search among candidates, in a folder that it can be resumed from.

    `searched` is what is done already. `report` is told of progress several times a second.
    """

    def __init__(
        self,
        teaching: Teaching,
        searched: Searched,
        folder: SearchFolder,
        report: Callable[[Searching], None] | None = None,
    ) -> None:
        self._teaching = teaching
        self._searched = searched
        self._folder = folder
        self._report = report
        self._resumed = dict(searched.done)
        self._dropped: dict[str, str] = {}
        self._interrupted = False

    def run(self, seconds: float) -> Found:
        """Train for so many more seconds, but each candidate once at least.

        Raises TrainingError if no candidate could be trained.
        """
        spent = sum(done[-1].seconds for done in self._resumed.values())
        began = time.monotonic() - spent
        seconds += spent
        left = self._entrants(seconds)
        end = began
        for rung, share in enumerate(RUNGS):
            end += share * seconds
            left = self._rung(left, rung, began, end, seconds)
            if self._interrupted:
                break
            if rung < len(RUNGS) - 1:
                most = max(FINALISTS, len(left) // 2) if rung == 0 else FINALISTS
                left = self._keep(left, most, MARGINS[rung], LEAST[rung])
        return Found(self._keep(left, FINALISTS, MARGIN), self._dropped, self._interrupted)

    def _entrants(self, seconds: float) -> list[Trainee]:
        """Those that there is time for in the first rung, two at least, and those that were in it
        before."""
        entrants: list[Trainee] = []
        left = RUNGS[0] * seconds
        for candidate in self._searched.candidates:
            judging = JUDGED * candidate.share * self._teaching.judging
            left -= max(LEAST_SECONDS, judging)
            if left >= 0 or len(entrants) < 2 or candidate.slug in self._resumed:
                entrants.append(Trainee(candidate, self._teaching))
            else:
                self._dropped[candidate.name] = "not tried: there are not enough --minutes"
        return entrants

    def _rung(
        self, trainees: Sequence[Trainee], rung: int, began: float, end: float, seconds: float
    ) -> list[Trainee]:
        """Train each until `end` at the latest; those of which something came."""
        trained = []
        for place, trainee in enumerate(trainees):
            if self._restored(trainee, rung):
                trained.append(trainee)
                continue
            now = time.monotonic()
            slot = max(0.0, (end - now) / (len(trainees) - place))
            if rung > 0 and slot <= JUDGED * trainee.judging:  # it stays as it is
                trained.append(trainee)
                continue
            best = max((each.score for each in trained), default=None)
            tell = self._telling(
                trainee, rung, place, len(trainees), best, began, now, slot, seconds
            )
            try:
                self._train(trainee, rung, slot, tell)
            except TrainingError as error:
                self._dropped[trainee.name] = str(error)
                continue
            except KeyboardInterrupt:  # before or after its epochs: what it was before counts
                self._interrupted = True
            if trainee.trained:
                trained.append(trainee)
            if self._interrupted and rung > 0:
                return list(trainees)
            if self._interrupted:
                if not trained:
                    raise KeyboardInterrupt
                return trained
        if not trained:
            raise TrainingError("no candidate could be trained; see what `parm parity` says of it")
        return trained

    def _restored(self, trainee: Trainee, rung: int) -> bool:
        """Was this rung over for the trainee when the search was cut off? It is as it was then."""
        done = self._resumed.get(trainee.candidate.slug, ())
        if rung >= len(done):
            return False
        last = rung == len(done) - 1
        trainee.restore(done[rung], self._folder.load(trainee.candidate) if last else None)
        return True

    def _train(self, trainee: Trainee, rung: int, seconds: float, tell: Report | None) -> None:
        checkpoint = self._folder.checkpoint(trainee.candidate, rung)
        fitted = trainee.train(seconds, rung, checkpoint, checkpoint.exists(), tell)
        self._interrupted = fitted.interrupted
        if fitted.interrupted:
            return
        self._folder.save(trainee.candidate, trainee.state())
        slug = trainee.candidate.slug
        done = (*self._searched.done.get(slug, ()), trainee.done)
        everything = self._searched.done | {slug: done}
        self._searched = msgspec.structs.replace(self._searched, done=everything)
        self._folder.write(self._searched)
        checkpoint.unlink(missing_ok=True)

    def _telling(
        self,
        trainee: Trainee,
        rung: int,
        place: int,
        of: int,
        best: float | None,
        began: float,
        now: float,
        slot: float,
        seconds: float,
    ) -> Report | None:
        """What turns reports of a training into reports of the search."""
        report = self._report
        if report is None:
            return None

        def tell(progress: Progress) -> None:
            passed = now - began + progress.spent * slot
            top = max((each for each in (best, progress.best) if each is not None), default=None)
            spent = min(1.0, passed / seconds)
            left = max(0.0, seconds - passed)
            report(Searching(spent, left, trainee.name, rung, place + 1, of, top))

        return tell

    def _keep(
        self, trainees: list[Trainee], most: int, margin: float, least: int = 1
    ) -> list[Trainee]:
        kept = keep(trainees, most, margin, least)
        self._dropped |= {trainees[place].name: why for place, why in kept.dropped.items()}
        return [trainees[place] for place in kept.places]
