"""An engine that cannot start for now, for one reason or another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from own_engine import InProcess
from parity_models.serving.engine import EngineListener
from parity_models.serving.remote.remote_engine import Fault, UpstreamError


class Late(InProcess):
    """It cannot start while there is some `trouble`; `tries` counts how often it was to."""

    name = "late"
    trouble: ClassVar[Callable[[], Exception] | None] = None
    tries: ClassVar[int] = 0

    @dataclass(frozen=True, kw_only=True)
    class Options(InProcess.Options):
        """What can be set."""

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        Late.tries += 1
        if Late.trouble is not None:
            raise Late.trouble()
        await super().start(roles, listener)


def nobody_there() -> Exception:
    """What passes when servers come."""
    return UpstreamError(Fault.UNREACHABLE, "nobody is there")


def not_ready() -> Exception:
    """What passes when servers are ready."""
    return UpstreamError(Fault.NOT_READY, "somebody is there, and not ready")


ENGINE = f"{__name__}:Late"
