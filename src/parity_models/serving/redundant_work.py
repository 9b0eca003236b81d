"""What becomes of redundant work: counted as it is sent, answers, is cancelled, or is wasted."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from parity_models.scheduling import (
    BACKUP,
    BACKUPS,
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Fail,
    ForgetGroup,
    Run,
    Source,
    Verify,
)
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observer

COPY, PARITY = "copy", "parity"
USUAL = (COPY, BACKUP, PARITY)
"""Kinds that are shown though nothing of them was sent."""
OF_QUERIES = (COPY, *BACKUPS)
"""Kinds of which the tasks are each for one query."""

SENT, ANSWERED, CANCELLED, WASTED = "sent", "answered", "cancelled", "wasted"
COMPARED, REFUSED = "compared", "refused"
FATES = (SENT, ANSWERED, CANCELLED, WASTED, COMPARED, REFUSED)


class RedundantWork(Observer):
    """Counts in `metrics` what is run besides the originals, by kind, and what it was good for.

    A task is a query's copy or backup, or a group's parity query. It is *sent* when it begins to
    run, *cancelled* if nobody needed it while it ran, *compared* if it ran, or ran on, for nobody
    but a comparison, and *wasted* if it ran to its end and answered nobody; of queries, *answered*
    are those that it answered, before the model's own prediction, and *refused* those that its
    output was not to answer. A query that is run again as its unit failed is no copy.

    Runs are timed by role and by the class of the instance: the roles that it runs.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._runs = metrics.unit_run
        self._classes: dict[str, str] = {}
        """The class of each instance that is up."""
        self._timed: dict[tuple[str, str], Callable[[float], None]] = {}
        """What a run's time is told, by role and class of the instance."""
        self._count = cache(lambda kind, fate: metrics.redundant.labels(kind, fate).inc)
        for kind in USUAL:
            for fate in FATES:
                metrics.redundant.labels(kind, fate)
        self._units: dict[int, tuple[float, str, Sequence[int]]] = {}
        """Of a unit that runs: since when, the kind of its redundant tasks, and their subjects."""
        self._originals: Counter[int] = Counter()
        """How many units of the deployed model run, or have run to their end, for a query that is
        neither answered nor failed."""
        self._useless: dict[str, Counter[int]] = {kind: Counter() for kind in (*OF_QUERIES, PARITY)}
        """By kind, tasks that ran to their end and have answered nobody yet, by subject."""
        self._running: Counter[tuple[str, int]] = Counter()
        """How many redundant tasks run, by kind and subject."""
        self._gone: set[tuple[str, int]] = set()
        """Those of them whose query is answered, or failed, or whose group is forgotten."""
        self._groups: dict[int, int] = {}
        """The group from which a query is being reconstructed."""
        self._do: dict[type, Callable[[float, Any], None]] = {
            Run: self._run,
            Cancel: lambda now, action: self._not_needed(action.unit, CANCELLED),
            Compare: lambda now, action: self._not_needed(action.unit, COMPARED),
            Decode: self._decode,
            Answer: self._answer,
            Fail: self._fail,
            ForgetGroup: self._forget_group,
        }

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            tell = self._do.get(type(action))
            if tell is not None:
                tell(now, action)

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        self._classes[instance] = "+".join(sorted(roles))

    def instance_left(self, now: float, instance: str, why: str) -> None:
        self._classes.pop(instance, None)

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        for query in queries:
            if source is Source.RECONSTRUCTION:
                if query in self._groups:
                    self._count(PARITY, REFUSED)(1)
            elif self._useless[source].get(query):  # else it was compared, or came too late
                self._count(source, REFUSED)(1)

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        if isinstance(unit, Verify) or unit.unit not in self._units:
            return
        began, kind, redundant = self._units.pop(unit.unit)
        if finished:
            self._observe(unit, now - began)
        elif unit.role == DEPLOYED:
            for query in unit.subjects:
                if self._originals[query] > 0:
                    self._originals[query] -= 1
        self._over(kind, redundant)
        if finished:
            for subject in redundant:
                if (kind, subject) in self._gone:
                    self._count(kind, WASTED)(1)
                else:
                    self._useless[kind][subject] += 1
        self._remember_no_more(kind, redundant)

    @property
    def remembered(self) -> int:
        """How much it remembers of what is under way: nothing, when nothing is."""
        useless = sum(len(each) for each in self._useless.values())
        under_way = len(self._units) + len(self._running) + len(self._gone)
        return under_way + len(self._originals) + len(self._groups) + useless

    def _run(self, now: float, run: Run) -> None:
        if run.role == DEPLOYED:
            kind, redundant = COPY, [each for each in run.subjects if self._originals[each] > 0]
            self._originals.update(run.subjects)
        else:
            kind = run.role if run.role in BACKUPS else PARITY
            redundant = list(run.subjects)
        self._units[run.unit] = (now, kind, redundant)
        if redundant:
            self._count(kind, SENT)(len(redundant))
            self._running.update((kind, each) for each in redundant)

    def _observe(self, unit: Run, seconds: float) -> None:
        key = unit.role, self._classes.get(unit.instance, "")
        timed = self._timed.get(key)
        if timed is None:
            timed = self._timed[key] = self._runs.labels(*key).observe
        timed(seconds)

    def _over(self, kind: str, redundant: Sequence[int]) -> None:
        """These tasks do not run any more."""
        for subject in redundant:
            self._running[kind, subject] -= 1
            if not self._running[kind, subject]:
                del self._running[kind, subject]

    def _remember_no_more(self, kind: str, redundant: Sequence[int]) -> None:
        """Those of the subjects for which nothing of the kind runs any more are not needed."""
        for subject in redundant:
            if (kind, subject) not in self._running:
                self._gone.discard((kind, subject))

    def _not_needed(self, unit: int, fate: str) -> None:
        """Nobody waits for this unit any more, or ever did."""
        if unit in self._units:
            began, kind, redundant = self._units[unit]
            if redundant:
                self._count(kind, fate)(len(redundant))
                self._over(kind, redundant)
                self._remember_no_more(kind, redundant)
                self._units[unit] = (began, kind, ())

    def _decode(self, now: float, action: Decode) -> None:
        for slot in action.slots:
            self._groups[action.members[slot]] = action.group

    def _answer(self, now: float, action: Answer) -> None:
        query = action.query
        if action.source in BACKUPS:
            self._answered(action.source, query)
        elif action.source is Source.RECONSTRUCTION:
            self._answered(PARITY, self._groups.get(query, -1))
        elif action.source is Source.MODEL and self._useless[COPY].get(query):
            self._answered(COPY, query)
        self._resolved(query)

    def _fail(self, now: float, action: Fail) -> None:
        self._resolved(action.query)

    def _resolved(self, query: int) -> None:
        """The query has its answer, or its error: nothing more is run for it."""
        self._originals.pop(query, None)
        self._groups.pop(query, None)
        if self._running or any(self._useless[kind] for kind in OF_QUERIES):
            for kind in OF_QUERIES:
                self._waste(kind, query)

    def _answered(self, kind: str, subject: int) -> None:
        self._count(kind, ANSWERED)(1)
        self._useless[kind].pop(subject, None)

    def _forget_group(self, now: float, action: ForgetGroup) -> None:
        self._waste(PARITY, action.group)

    def _waste(self, kind: str, subject: int) -> None:
        wasted = self._useless[kind].pop(subject, 0)
        if wasted:
            self._count(kind, WASTED)(wasted)
        if (kind, subject) in self._running:
            self._gone.add((kind, subject))
