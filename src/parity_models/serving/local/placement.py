"""Where a worker of the local engine runs, and how it is reached there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Addresses:
    """IP addresses at which an engine and its worker listen to each other, over TCP."""

    engine: str
    worker: str


@dataclass(frozen=True)
class Placement:
    """A worker's place; the default is beside its engine, with sockets that are files.

    `prefix` comes before the worker's command line and must end in an exec of it, as `taskset`
    and `ip netns exec` do. `device` is a file that stands for an accelerator: of all workers
    with the same device, one has a unit running at a time. `node` names the machine that fails as
    one with all that is on it; None: the worker has one to itself.
    """

    prefix: tuple[str, ...] = ()
    link: Addresses | None = None
    device: str | None = None
    node: str | None = None
