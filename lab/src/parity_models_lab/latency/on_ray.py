"""A bundle served on a Ray cluster of its own, from a process of its own; see `served`.

Faults begin when an instance starts, so that there is nothing to be told.
"""

import os
import sys
from collections.abc import Callable
from functools import partial

import msgspec

from parity_models.load.child import exit_code, keep_output
from parity_models.load.served import ServeSpec
from parity_models.models.bundle import open_bundle
from parity_models.serving.ray.cluster import served_on_ray
from parity_models.serving.ray.cluster_options import ClusterOptions

CPUS = 0.05
"""What each replica reserves: emulated accelerators hold no core."""


def main(text: str) -> int:
    """Serve as the JSON text says; tell the URL, or why there is none, on standard output."""
    tell = keep_output()  # Ray starts processes, and some of them write
    # Ray lets other processes go first; other engines' instances do not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return exit_code(partial(_serve, msgspec.json.decode(text, type=ServeSpec), tell), tell)


def _serve(spec: ServeSpec, tell: Callable[[str], None]) -> None:
    cluster = ClusterOptions(cpus_per_instance=CPUS, cpus_per_frontend=CPUS)
    bundle = open_bundle(spec.bundle, spec.allow_code)
    with served_on_ray(bundle, spec.options, cluster) as url:
        tell(url)
        sys.stdin.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
