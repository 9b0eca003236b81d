"""How many files and sockets the process may have open."""

import logging
import resource

from parity_models.errors import UserError

SPARE = 64
"""Descriptors for what is neither a connection nor a worker: models, logs, the event loop."""

OF_A_WORKER = 8
"""Descriptors for each worker: sockets to it and from it, its standard error, its process."""

LEAST = 16
"""Connections that a server must at least have room for."""

_log = logging.getLogger(__name__)


def allow_descriptors(connections: int, workers: int) -> bool:
    """Raise the soft limit of open files, if need be, to what so many connections and workers need.

    Where the hard limit is below that, it is raised to that limit, and the log says what is
    missing. Returns whether there are enough. Raises UserError where hardly any client could be
    served.
    """
    besides = OF_A_WORKER * workers + SPARE
    needed = connections + besides
    least = min(connections, LEAST) + besides
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
    if possible < least:
        raise UserError(
            f"this process may open at most {possible} files (RLIMIT_NOFILE), and {workers} "
            f"instances with {min(connections, LEAST)} connections alone need {least} "
            f"({OF_A_WORKER} an instance, {SPARE} besides); all {connections} connections need "
            f"{needed}: raise the hard limit (ulimit -Hn {needed} as root, LimitNOFILE= of "
            "systemd, --ulimit nofile= of a container), or serve with fewer instances"
        )
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
