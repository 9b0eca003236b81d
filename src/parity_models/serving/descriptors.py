"""How many files and sockets the process may have open."""

import logging
import resource

SPARE = 64
"""Descriptors for what is neither a connection nor a worker: models, logs, the event loop."""

OF_A_WORKER = 8
"""Descriptors for each worker: sockets to it and from it, its standard error, its process."""

_log = logging.getLogger(__name__)


def allow_descriptors(connections: int, workers: int) -> bool:
    """Raise the soft limit of open files, if need be, to what so many connections and workers need.

    Where the hard limit is below that, it is raised to that limit, and the log says what is
    missing. Returns whether there are enough.
    """
    needed = connections + OF_A_WORKER * workers + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _at_least(soft, needed):
        return True
    possible = needed if _at_least(hard, needed) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (OSError, ValueError):
        possible = soft
    if possible >= needed:
        return True
    _log.warning(
        "this process may open %d files, and %d connections and %d workers may need %d: further "
        "connections will be refused; raise the limit (ulimit -n, LimitNOFILE) or lower "
        "--max-connections",
        possible,
        connections,
        workers,
        needed,
    )
    return False


def _at_least(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
