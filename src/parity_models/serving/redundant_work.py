"""The fate of redundant work: counted as it is sent, answers, is cancelled, or is wasted."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache

from parity_models.roles import BACKUP, BACKUPS, DEPLOYED, Source
from parity_models.scheduling import (
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Fail,
    ForgetGroup,
    Run,
    Verify,
)
from parity_models.serving.metrics import Metrics
from parity_models.serving.observer import Observer

COPY, PARITY = "copy", "parity"
USUAL = (COPY, BACKUP, PARITY)
"""Kinds that are shown from the start."""
OF_QUERIES = (COPY, *BACKUPS)
"""Kinds whose tasks are each for one query."""

SENT, ANSWERED, CANCELLED, WASTED = "sent", "answered", "cancelled", "wasted"
COMPARED, REFUSED = "compared", "refused"
FATES = (SENT, ANSWERED, CANCELLED, WASTED, COMPARED, REFUSED)

Task = tuple[str, int]
"""The kind, and the query or the group."""


class RedundantWork(Observer):
    """Counts in `metrics` what is run besides the originals, by kind, and what it was good for.

    A task is a query's copy or backup, or a group's parity query. It is *sent* when it begins to
    run, *cancelled* if it was no longer needed while it ran, *compared* if it ran, or ran on, only
    for a comparison, and *wasted* if it ran to its end and answered nobody. Of queries, *answered*
    are those that it answered, before the model's own prediction, and *refused* those that its
    output was not allowed to answer. A query that is run again as its unit failed is no copy.

    Runs are timed by role and by the class of the instance: the roles that it runs.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._count = cache(lambda kind, fate: metrics.redundant.labels(kind, fate).inc)
        self._timed = cache(lambda role, alike: metrics.unit_run.labels(role, alike).observe)
        for kind in USUAL:
            for fate in FATES:
                metrics.redundant.labels(kind, fate)
        self._classes: dict[str, str] = {}
        """The class of each instance that is up."""
        self._units: dict[int, tuple[float, Sequence[Task]]] = {}
        """When a unit began, and its redundant tasks."""
        self._originals: Counter[int] = Counter()
        """How many units of the deployed model run, or have finished, for an unresolved query."""
        self._running: Counter[Task] = Counter()
        """How many redundant tasks run."""
        self._gone: set[Task] = set()
        """Those of them whose query is resolved, or whose group is forgotten."""
        self._unused: Counter[Task] = Counter()
        """Redundant tasks that have finished and have answered nobody yet."""
        self._groups: dict[int, int] = {}
        """The group from which a query is being reconstructed."""

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self._run(now, action)
                case Answer():
                    self._answer(action.query, action.source)
                case Fail():
                    self._resolved(action.query)
                case Cancel():
                    self._not_needed(action.unit, CANCELLED)
                case Compare():
                    self._not_needed(action.unit, COMPARED)
                case Decode():
                    for slot in action.slots:
                        self._groups[action.members[slot]] = action.group
                case ForgetGroup():
                    self._waste((PARITY, action.group))

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
            elif (source, query) in self._unused:  # else it was compared, or came too late
                self._count(source, REFUSED)(1)

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        if isinstance(unit, Verify) or unit.unit not in self._units:
            return
        began, tasks = self._units.pop(unit.unit)
        if finished:
            self._timed(unit.role, self._classes.get(unit.instance, ""))(now - began)
        elif unit.role == DEPLOYED:
            for query in unit.subjects:
                if self._originals[query] > 0:
                    self._originals[query] -= 1
        if finished:
            for task in tasks:
                if task in self._gone:
                    self._count(task[0], WASTED)(1)
                else:
                    self._unused[task] += 1
        self._run_no_more(tasks)

    @property
    def remembered(self) -> int:
        """How much it remembers of what is in flight: nothing, when nothing is."""
        in_flight = len(self._units) + len(self._running) + len(self._gone)
        return in_flight + len(self._originals) + len(self._groups) + len(self._unused)

    def _run(self, now: float, run: Run) -> None:
        if run.role == DEPLOYED:
            tasks = [(COPY, each) for each in run.subjects if self._originals[each] > 0]
            self._originals.update(run.subjects)
        else:
            kind = run.role if run.role in BACKUPS else PARITY
            tasks = [(kind, each) for each in run.subjects]
        self._units[run.unit] = (now, tasks)
        if tasks:
            self._count(tasks[0][0], SENT)(len(tasks))
            self._running.update(tasks)

    def _run_no_more(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._running[task] -= 1
            if not self._running[task]:
                del self._running[task]
                self._gone.discard(task)

    def _not_needed(self, unit: int, fate: str) -> None:
        began, tasks = self._units.get(unit, (0.0, ()))
        if tasks:
            self._count(tasks[0][0], fate)(len(tasks))
            self._run_no_more(tasks)
            self._units[unit] = (began, ())

    def _answer(self, query: int, source: Source) -> None:
        if source in BACKUPS:
            self._answered((source, query))
        elif source is Source.RECONSTRUCTION:
            self._answered((PARITY, self._groups.get(query, -1)))
        elif source is Source.MODEL and (COPY, query) in self._unused:
            self._answered((COPY, query))
        self._resolved(query)

    def _answered(self, task: Task) -> None:
        self._count(task[0], ANSWERED)(1)
        self._unused.pop(task, None)

    def _resolved(self, query: int) -> None:
        """The query has its answer, or its error: nothing more is run for it."""
        self._originals.pop(query, None)
        self._groups.pop(query, None)
        if self._running or self._unused:
            for kind in OF_QUERIES:
                self._waste((kind, query))

    def _waste(self, task: Task) -> None:
        wasted = self._unused.pop(task, 0)
        if wasted:
            self._count(task[0], WASTED)(wasted)
        if task in self._running:
            self._gone.add(task)
