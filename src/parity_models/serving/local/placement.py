"""Where a worker of the local engine runs, and how it is reached there."""

import asyncio
from dataclasses import dataclass, field


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


@dataclass(eq=False)
class Place:
    """A worker's place in an engine, for all its lives, which its `supervisor` sees to.

    `reports`: the endpoint at which the engine listens to it, if it has a link. `closed` when it is
    to have no worker any more.
    """

    number: int
    roles: frozenset[str]
    placement: Placement
    reports: str | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    supervisor: asyncio.Task[None] = field(init=False)
