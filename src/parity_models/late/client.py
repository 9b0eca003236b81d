"""What a client knows of the target of its calls, and what it may spend on them."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.onnx_model import run_options
from parity_models.errors import UserError
from parity_models.late.values import Codec, is_error
from parity_models.roles import DEPLOYED
from parity_models.scheduling.process_load import ProcessLoad
from parity_models.scheduling.race import BURST, Budget, Rule
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import COMPARE, due
from parity_models.tensors.signature import Array, Batch
from parity_models.trust.gate import served

now = time.monotonic

KNOWN_AFTER = 20
"""Calls after which their run times are known."""

NO_QUEUE, CONGESTED = 0.1, 4.0
"""The share NO_QUEUE of calls wait in no queue. The target is *slow* for a call that takes
CONGESTED times as long as these. Calls that were answered in another way before do not count."""

NEWEST = 1 / 32
"""The weight of the newest call in the share for which the target is slow."""

FULL = 0.15
"""While the target is slow for this share of calls, copies would make others wait."""

COMPARE_ONE_IN = 20
"""One in this many answers of the stand-in is compared with the model's, and more of the first."""

COMPARE_ONE_IN_TIME = round(1 / COMPARE)
"""One in this many calls in time is compared, and more of the first."""

MAX_COMPARED = 16
"""The most calls that run at a time for a comparison; meanwhile, none is drawn."""

MAX_CALLERS, MAX_WAITING = 64, 64
"""The most blocking calls at a time, and the most calls that wait for a stand-in."""

STALL = 0.01
"""A stall of the event loop counts as at most this many seconds, or a median run time if that is
longer: one stall is no overload."""


class Client:
    """What the races of a Late share, and the conditions that they ask about (race.View).

    Args:
        backup: The stand-in, if there is one.
        copies: Maximum copies per call, on average.
        cpu: Maximum computing time of stand-ins, as a share of one core: at most a second's share
            at once.

    """

    idle, busy = True, 0.0

    def __init__(self, backup: GatedBackup | None, copies: float, cpu: float) -> None:
        self.rule = Rule(0.0, copies, runs=RunTimes(first=KNOWN_AFTER), may_hang=True)
        self.rule.copies = _Copies(copies, self)
        self.counts: Counter[str] = Counter()
        self.backup = backup
        self.form: Codec | None = None
        """The form of answers, given or learned from the first; None while it is unknown."""
        self.threads = Threads()
        self.computed: set[Future[Any]] = set()
        """The runs of stand-ins that have not ended."""
        self.compared: dict[asyncio.Future[Any], None] = {}
        """The calls that run for a comparison, the oldest first."""
        self.in_flight: dict[asyncio.Future[Any], float] = {}
        """The start of each call in flight that is not slow yet, the oldest first."""
        self._slowness = 0.0
        """The share of recent calls for which the target was slow."""
        self._slow_servers: set[int] = set()
        """The servers whose last call was among the slowest."""
        self._last_server = 0
        self._cpu = self._computing = cpu
        self._refilled = now()
        self._process_load = ProcessLoad()
        self._last_alarm = 0.0
        self.random = Random()
        self.drawn = {False: 0, True: 0}
        """Comparisons that were drawn: of calls in time, and of late ones (True)."""

    @property
    def waiting(self) -> float:
        slowness = self.slowness
        return slowness / max(NEWEST, 1 - slowness)

    @property
    def open(self) -> bool:
        if self.threads.closed or len(self.computed) >= MAX_WAITING:
            return False
        since, self._refilled = self._refilled, now()
        income = self._cpu * (self._refilled - since)
        self._computing = min(self._cpu, self._computing + income)
        return self._computing > 0

    @property
    def helps(self) -> bool:
        return not self._process_load.is_bottleneck

    @property
    def slowness(self) -> float:
        """The share of recent calls for which the target was slow."""
        calls, fastest = self.in_flight, self.rule.runs.quantile(NO_QUEUE)
        while fastest and calls and now() - next(iter(calls.values())) > CONGESTED * fastest:
            del calls[next(iter(calls))]
            self._slowness += NEWEST * (1 - self._slowness)
        return self._slowness

    def answered(self, call: "asyncio.Future[Any]") -> None:
        """The call itself was answered."""
        slowness = self.slowness
        if self.in_flight.pop(call, None) is not None:
            self._slowness -= NEWEST * slowness

    def ended(self, server: int, seconds: float, *, finished: bool) -> None:
        """Learn from the run time of a call, which ran to its end or not."""
        self.rule.ended(DEPLOYED, seconds, finished=finished)
        if seconds > self.rule.copied_after > 0:
            self._slow_servers.add(server)
        elif finished:
            self._slow_servers.discard(server)

    def spent(self, seconds: float) -> None:
        """A stand-in has computed for this long."""
        self._computing -= seconds

    def woke(self, time: float, due: float) -> None:
        """Learn how late the event loop runs alarms."""
        if due > self._last_alarm:  # else it waited for other alarms
            median = self.rule.runs.median or 0.0
            self._process_load.waited(min(time - due, max(median, STALL)), median)
        self._last_alarm = time

    def server_for_copy(self, calls: int) -> int:
        """Return which of `calls` calls, each to a different server, to repeat: all but the first
        in turn, and slow servers only if there are no others."""
        if calls == 1:
            return 0
        self._last_server += 1
        turn = [1 + (self._last_server + each) % (calls - 1) for each in range(calls - 1)]
        return next((each for each in turn if each not in self._slow_servers), turn[0])

    def draws(self) -> bool:
        """Draw whether a late call is compared."""
        if len(self.compared) >= MAX_COMPARED or not due(
            self.drawn[True], COMPARE_ONE_IN, self.random
        ):
            return False
        self.drawn[True] += 1
        return True

    def compare(
        self, call: "asyncio.Future[Any]", started: float, made: Array, form: Codec
    ) -> None:
        """Compare the backup's answer with the result of the call, once it is there."""

        def ended(call: "asyncio.Future[Any]") -> None:
            self.compared.pop(call, None)
            if call.cancelled() or call.exception() is not None:
                self.in_flight.pop(call, None)
                return
            self.answered(call)
            self.ended(0, now() - started, finished=True)
            self._compare(made, call.result(), form, late=True)

        self.compared[call] = None
        call.add_done_callback(ended)

    def compare_in_time(self, inputs: ArrayLike | Batch, value: Any, form: Codec) -> None:
        """Ask the backup as well for a call that was answered in time, now and then."""
        backup = self.backup
        if backup is None or self.computed or not self.open:  # late calls come first
            return
        if not due(self.drawn[False], COMPARE_ONE_IN_TIME, self.random):
            return
        self.drawn[False] += 1

        def run() -> tuple[Array | Refusal, float]:
            started = now()
            return backup.run(backup.read(inputs), run_options()), now() - started

        def ended(run: "asyncio.Future[tuple[Array | Refusal, float]]") -> None:
            if run.cancelled() or run.exception() is not None:
                return  # the rows do not fit, as a late call would say
            made, seconds = run.result()
            self.spent(seconds)
            if not isinstance(made, Refusal):
                self._compare(made, value, form, late=False)

        running = self.threads.backup.submit(run)
        self.computed.add(running)
        running.add_done_callback(self.computed.discard)
        asyncio.wrap_future(running).add_done_callback(ended)

    def _compare(self, made: Array, value: Any, form: Codec, *, late: bool) -> None:
        assert self.backup is not None
        output = None if is_error(value) else form.read(value)
        if output is not None and len(output) == len(made):
            if self.backup.labels:  # a class that the stand-in does not know: any but its own
                output = np.where(np.isnan(output), -served(made), output)
            agreed, given = self.backup.compare(made, output, late=late), " late" if late else ""
            if agreed is not None:
                self.counts["compared" + given] += 1
                self.counts["disagreed" + given] += not agreed


class _Copies(Budget):
    """A budget of copies that allows none while the target is slow for many calls."""

    def __init__(self, share: float, client: Client) -> None:
        super().__init__(share, BURST)
        self._client = client

    def spend(self) -> bool:
        return self._client.slowness < FULL and super().spend()


class Threads:
    """Threads that are started when they are first used: of the backup, of blocking calls, and of
    the event loop that these are raced on."""

    def __init__(self) -> None:
        self.backup = ThreadPoolExecutor(1, "parm-backup")
        self.callers = ThreadPoolExecutor(MAX_CALLERS, "parm-call")
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs in a thread. Raises UserError after `close`."""
        with self._lock:
            if self.closed:
                raise UserError("this Late is closed, and makes no more calls; open another one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), daemon=True).start()
            return self._loop

    def close(self) -> None:
        """End all threads, once they are idle."""
        for pool in (self.backup, self.callers):
            pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self.closed = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # at its end, cancels what runs
        runner.get_loop().run_forever()
