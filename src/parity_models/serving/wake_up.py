"""The scheduler's one timer, on the event loop."""

import asyncio
import math
import time
from collections.abc import Callable


class WakeUp:
    """Calls `wake` at the time that was set last (monotonic, seconds)."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._time = self._timer_time = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def set(self, time: float) -> None:
        """Wake at `time` instead of what was set before."""
        self._time = time
        # A timer that is too early is set anew when it fires: most are never waited for so long.
        if self._timer is None or time < self._timer_time:
            self._start_timer()

    def cancel(self) -> None:
        """Wake no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self) -> None:
        self.cancel()
        if self._loop is None:
            # Kept, as asking for it is a system call (Python 3.11: it looks at the process id).
            self._loop = asyncio.get_running_loop()
        self._timer_time = self._time
        # uvloop rounds to whole milliseconds: rounding up keeps the wake-up from coming early,
        # over and over.
        delay = max(0, math.ceil((self._time - time.monotonic()) * 1e3)) / 1e3
        self._timer = self._loop.call_later(delay, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if time.monotonic() < self._time:
            self._start_timer()
        else:
            self._wake()
