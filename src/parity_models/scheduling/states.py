"""The states of a query, the events that change them, and the table of transitions.

A query that waits is started, and ends when it is answered or fails. If all that ran is over, it is
queued again. A policy may ask the backup first: then the original is withheld until the backup has
failed or does not answer. `Query.decoding` says whether it is being reconstructed meanwhile.
"""

from enum import IntEnum, auto


class QueryState(IntEnum):
    """The state of a query."""

    WAITING = auto()
    """Its original or a copy is queued, and none has run since. If it can no longer be in time
    while others wait, it ends as if at its deadline, to make room."""
    DEFERRED = auto()
    """The backup is asked first; its task is queued."""
    REPLACED = auto()
    """The backup is asked first; its task runs, or has run."""
    RUNNING = auto()
    """A task of it runs. If that fails, it is queued again, up to `max_attempts` times."""
    SUSPECT = auto()
    """An instance was lost that ran it. It is to be tried alone, or to fail (poison.py)."""
    ENDED = auto()
    """It was answered, or has failed."""


class QueryEvent(IntEnum):
    """An event in the life of a query."""

    ASKED_FIRST = auto()
    """The backup is asked in place of its original."""
    STARTED = auto()
    """Its original, a copy, or a task of the backup in place of them starts."""
    QUEUED = auto()
    """Its original or a copy is queued again, and none runs."""
    LOST = auto()
    """An instance that ran it was lost, and it is not to run with others."""


WAITING, DEFERRED, REPLACED, RUNNING, SUSPECT, ENDED = QueryState
ASKED_FIRST, STARTED, QUEUED, LOST = QueryEvent

TRANSITIONS: dict[QueryState, dict[QueryEvent, QueryState]] = {
    WAITING: {ASKED_FIRST: DEFERRED, STARTED: RUNNING, QUEUED: WAITING, LOST: WAITING},
    DEFERRED: {STARTED: REPLACED, QUEUED: WAITING, LOST: WAITING},
    REPLACED: {QUEUED: WAITING, LOST: SUSPECT},
    RUNNING: {STARTED: RUNNING, QUEUED: WAITING, LOST: SUSPECT},
    SUSPECT: {STARTED: RUNNING, QUEUED: WAITING, LOST: SUSPECT},
    ENDED: {},
}
"""The next state, by state and event; other events cannot happen. A query may end in any state."""

UNSTARTED = frozenset({WAITING, DEFERRED})
"""The states of a query that waits for an instance."""

WITHHELD = frozenset({DEFERRED, REPLACED})
"""The states in which a query's original is withheld."""
