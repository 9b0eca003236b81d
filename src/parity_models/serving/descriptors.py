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


class OpenFiles:
    """This process's limit of open files."""

    def read(self) -> tuple[int, int]:
        """The soft limit and the hard one; either may be RLIM_INFINITY."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def write(self, soft: int, hard: int) -> None:
        """Set both. Raises OSError or ValueError where the system does not let it."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allow_descriptors(connections: int, workers: int, limit: OpenFiles | None = None) -> bool:
    """Raise the soft limit of open files, if need be, to what so many connections and workers need.

    Where the hard limit is below that, it is raised to that limit, and the log says what is
    missing. Returns whether there are enough. Raises UserError where hardly any client could be
    served.
    """
    limit = OpenFiles() if limit is None else limit
    besides = OF_A_WORKER * workers + SPARE
    needed = connections + besides
    least = min(connections, LEAST) + besides
    soft, hard = limit.read()
    if _at_least(soft, needed):
        return True
    possible = needed if _at_least(hard, needed) else hard
    try:
        limit.write(possible, hard)
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


def _at_least(most: int, needed: int) -> bool:
    return most == resource.RLIM_INFINITY or most >= needed
