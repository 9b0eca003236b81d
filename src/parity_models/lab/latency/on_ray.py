"""A bundle served on a Ray cluster of its own, from a process of its own; see `served`.

Faults begin when an instance starts, so that there is nothing to be told.
"""

import os
import sys

import msgspec

from parity_models.errors import ParityModelsError, UserError
from parity_models.lab.latency.served import ServeSpec
from parity_models.load.child import USERS_MISTAKE, keep_output
from parity_models.models.bundle import open_bundle
from parity_models.serving.ray.app import ClusterOptions
from parity_models.serving.ray.cluster import served_on_ray

CPUS = 0.05
"""What each replica reserves: emulated accelerators hold no core."""


def main(text: str) -> int:
    """Serve as the JSON text says; tell the URL, or why there is none, on standard output."""
    tell = keep_output()  # Ray starts processes, and some of them write
    spec = msgspec.json.decode(text, type=ServeSpec)
    # Ray lets other processes go first; other engines' instances do not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    cluster = ClusterOptions(cpus_per_instance=CPUS, cpus_per_frontend=CPUS)
    try:
        with served_on_ray(open_bundle(spec.bundle), spec.options, cluster, None) as url:
            tell(url)
            sys.stdin.read()
    except ParityModelsError as error:
        tell(str(error))
        return USERS_MISTAKE if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
