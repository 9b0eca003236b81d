"""A server: a bundle's models on an engine, a frontend over them, and HTTP in front."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from parity_models.models.bundle import Bundle
from parity_models.scheduling.policies import AnswerRule, Pool


class PolicyName(StrEnum):
    """The redundancy policies a server can be started with."""

    NONE = "none"
    EQUAL_RESOURCES = "equal-resources"
    PARITY = "parity"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve a bundle. Times in seconds, sizes in bytes.

    `policy` None: parity if the bundle has parity models, else none. `parity_instances` (the
    extra instances of the redundant policies and of equal resources) None: a share r/k of
    `instances`, rounded up. `name` None: the bundle's. `port` 0: any free port.
    """

    policy: PolicyName | None = None
    pool: Pool = Pool.SHARED
    instances: int = 2
    parity_instances: int | None = None
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 1
    max_group_wait: float | None = 0.01
    max_queue: int = 1000
    deadline: float = 10.0
    max_body: int = 64 * 2**20
    answer: AnswerRule = AnswerRule.FIRST
    answer_after: float = 0.0
    faults: Path | None = None


class Server:
    """Serves a bundle over the Open Inference Protocol.

    async with Server(open_bundle(path), ServeOptions(port=0)) as server:
        ...  # server.url
    """

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        self.bundle = bundle
        self.options = options

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:8000; known once started."""
        raise NotImplementedError

    async def start(self) -> None:
        """Bind, start all instances, and return when requests are answered."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Refuse new requests, answer those in flight, and stop all instances."""
        raise NotImplementedError

    def begin_faults(self) -> None:
        """Start the clock of the fault schedule; without one, nothing happens."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
