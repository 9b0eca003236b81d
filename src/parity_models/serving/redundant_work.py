"""The fate of redundant work: counted as it is sent, answers, is cancelled, or is wasted."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache

from parity_models.roles import BACKUP, BACKUPS, DEPLOYED, Source
from parity_models.scheduling import Decode, Run
from parity_models.serving.metrics import Metrics

COPY, PARITY = "copy", "parity"
USUAL = (COPY, BACKUP, PARITY)
"""Kinds that are shown from the start."""

SENT, ANSWERED, CANCELLED, WASTED = "sent", "answered", "cancelled", "wasted"
COMPARED, REFUSED = "compared", "refused"
FATES = (SENT, ANSWERED, CANCELLED, WASTED, COMPARED, REFUSED)

Task = tuple[str, int]
"""The kind, and the query or the group."""


class RedundantWork:
    """Counts in `metrics` what is run besides the originals, by kind, and what it was good for.

    A task is a query's copy or backup, or a group's parity query. It is *sent* when it begins to
    run, *cancelled* if it was no longer needed while it ran, *compared* if it ran, or ran on, only
    for a comparison, and *wasted* if it ran to its end and answered no query. Of queries,
    *answered* are those that it answered, before the model's own prediction, and *refused* those
    that its output was not allowed to answer. A query that is run again because its unit failed is
    not a copy.

    Runs are timed by role and by the class of the instance: the roles that it runs.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._count = cache(lambda kind, fate: metrics.redundant.labels(kind, fate).inc)
        self._timed = cache(lambda role, alike: metrics.unit_run.labels(role, alike).observe)
        for kind in USUAL:
            for fate in FATES:
                metrics.redundant.labels(kind, fate)
        self.classes: dict[str, str] = {}
        """The class of each instance that is up."""
        self._units: dict[int, tuple[float, Sequence[Task]]] = {}
        """The start of each unit that runs, and its redundant tasks."""
        self._originals: dict[int, int] = {}
        """Units of the deployed model that run, or have finished, for each unresolved query."""
        self._running: Counter[Task] = Counter()
        """Redundant tasks that run."""
        self._gone: set[Task] = set()
        """The running tasks whose query is resolved, or whose group is forgotten."""
        self._unused: Counter[Task] = Counter()
        """Redundant tasks that have finished and have answered no query yet."""
        self._groups: dict[int, int] = {}
        """The group from which a query is being reconstructed."""

    @property
    def remembered(self) -> int:
        """The size of what it remembers of work in flight: 0 when nothing is in flight."""
        in_flight = len(self._units) + len(self._running) + len(self._gone)
        return in_flight + len(self._originals) + len(self._groups) + len(self._unused)

    def began(self, now: float, run: Run) -> None:
        """A unit begins to run."""
        tasks = []
        if run.role == DEPLOYED:
            for query in run.subjects:
                before = self._originals.get(query, 0)
                self._originals[query] = before + 1
                if before:
                    tasks.append((COPY, query))
        else:
            kind = run.role if run.role in BACKUPS else PARITY
            tasks = [(kind, each) for each in run.subjects]
        self._units[run.unit] = (now, tasks)
        if tasks:
            self._count(tasks[0][0], SENT)(len(tasks))
            self._running.update(tasks)

    def ended(self, now: float, unit: Run, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""
        if unit.unit not in self._units:
            return
        began, tasks = self._units.pop(unit.unit)
        if finished:
            self._timed(unit.role, self.classes.get(unit.instance, ""))(now - began)
            for task in tasks:
                if task in self._gone:
                    self._count(task[0], WASTED)(1)
                else:
                    self._unused[task] += 1
        elif unit.role == DEPLOYED:
            for query in unit.subjects:
                if self._originals.get(query, 0) > 0:
                    self._originals[query] -= 1
        if tasks:
            self._run_no_more(tasks)

    def not_needed(self, unit: int, fate: str) -> None:
        """A unit's outputs will answer no query: it is cancelled, or runs on to be compared."""
        began, tasks = self._units.get(unit, (0.0, ()))
        if tasks:
            self._count(tasks[0][0], fate)(len(tasks))
            self._run_no_more(tasks)
            self._units[unit] = (began, ())

    def decoding(self, action: Decode) -> None:
        """Queries are being reconstructed from a group."""
        for slot in action.slots:
            self._groups[action.members[slot]] = action.group

    def refused(self, queries: Collection[int], source: Source) -> None:
        """The stand-in with this source may not answer these queries."""
        for query in queries:
            if source is Source.RECONSTRUCTION:
                if query in self._groups:
                    self._count(PARITY, REFUSED)(1)
            elif (source, query) in self._unused:  # else it was compared, or came too late
                self._count(source, REFUSED)(1)

    def resolved(self, query: int, source: Source | None) -> None:
        """A query has its answer, from this source, or its error: nothing more is run for it."""
        task = None
        if source in BACKUPS:
            task = (str(source), query)
        elif source is Source.RECONSTRUCTION:
            task = (PARITY, self._groups.get(query, -1))
        elif source is Source.MODEL and (COPY, query) in self._unused:
            task = (COPY, query)
        if task is not None:
            self._count(task[0], ANSWERED)(1)
            self._unused.pop(task, None)
        self._originals.pop(query, None)
        self._groups.pop(query, None)
        if self._running or self._unused:
            for kind in (COPY, *BACKUPS):
                self._waste((kind, query))

    def group_forgotten(self, group: int) -> None:
        """A group is over."""
        self._waste((PARITY, group))

    def _waste(self, task: Task) -> None:
        wasted = self._unused.pop(task, 0)
        if wasted:
            self._count(task[0], WASTED)(wasted)
        if task in self._running:
            self._gone.add(task)

    def _run_no_more(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._running[task] -= 1
            if not self._running[task]:
                del self._running[task]
                self._gone.discard(task)
