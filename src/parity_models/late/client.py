"""What is known of the targets of calls, what may be spent on them, and the events of calls."""

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike
from onnxruntime import RunOptions

from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.onnx_model import run_options
from parity_models.errors import UserError
from parity_models.late.servers import FAILED, Server, Servers
from parity_models.late.values import Codec, Form, form_of, is_error
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.process_load import MEASURE_INTERVAL, ProcessLoad
from parity_models.scheduling.race import BURST, Budget, Purse, Rule
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import COMPARE, due
from parity_models.tensors.signature import Array, Batch

now = time.monotonic

T = TypeVar("T")

Inputs = ArrayLike | Batch | Callable[[], ArrayLike | Batch]

KNOWN_AFTER = 20
"""Calls after which their run times are known."""

NO_QUEUE = 0.1
"""This share of calls, the shortest, wait in no queue."""

NEWEST = 1 / 32
"""The weight of the newest call in the share for which the target is slow."""

FULL = 0.15
"""While the target is slow for this share of calls, copies would make others wait."""

MAX_COMPARED = 16
"""The most calls that run at a time for a comparison; meanwhile, none is drawn."""

MAX_CALLERS, MAX_WAITING = 64, 64
"""The most blocking calls at a time, and the most calls that wait for a stand-in."""

MAX_KINDS, MAX_SHAPES = 100, 1000
"""The most kinds of calls, and shapes of rows, that are remembered."""

STALL = 0.01
"""A stall of the event loop counts as at most this many seconds, or a median run time if that is
longer: one stall is no overload."""

_log = logging.getLogger(__name__)

EventName = Literal["start", "answer", "failure", "refusal", "comparison"]


class LateEvent(NamedTuple):
    """An event: a call, a copy or the stand-in was started; the caller was answered; a call or a
    copy failed; the stand-in's output may not answer; or it was compared with the model's.

    Attributes:
        event: The name of the event.
        source: What it is about: the model, a copy or the backup.
        kind: The kind of the call.
        reason: The class of the error of a failure; the reason of a refusal; "agreed" or
            "disagreed" for a comparison, followed by "late" if the call was late.
        seconds: The time since the call was made; 0 for a comparison.

    """

    event: EventName
    source: Source
    kind: str
    reason: str = ""
    seconds: float = 0.0


OnEvent = Callable[[LateEvent], Any]


@dataclass(eq=False)
class Client:
    """What all races of a Late share, and its options. `lock` guards it, as races may run on
    several event loops. Of `cpu`, at most a second's share is used at once."""

    backup: GatedBackup | None
    copies: float
    cpu: float
    not_before: float
    servers: Servers
    errors: tuple[type[Exception], ...]
    form: Form | None
    on_event: OnEvent | None
    congested: float = 4.0
    """The target is *slow* for a call that takes this many times as long as one in no queue. Calls
    that are cut short before do not count."""
    compare_late: int = 20
    """One in this many answers of the stand-in is compared with the model's, and more of the first.
    """
    compare_in_time: int = round(1 / COMPARE)
    """One in this many calls in time is compared, and more of the first."""

    def __post_init__(self) -> None:
        self.paused = os.environ.get("PARM_LATE") == "off"
        self.purse = Purse(0.0)
        self.counts: Counter[str] = Counter()
        self.random = Random()
        self._kind = lru_cache(MAX_KINDS)(partial(Kind, self))
        self.computed: set[Future[Any]] = set()
        """The runs of stand-ins that have not ended."""
        self.compared: set[asyncio.Future[Any]] = set()
        """The calls that run for a comparison."""
        self._fitting: set[Any] = set()
        """Shapes of rows that fit the model."""
        self._computing, self._refilled = self.cpu, now()
        self.process_load = ProcessLoad()
        self._last_alarm = 0.0
        self._measured = 0, 0.0, 0.0
        """The thread of the last alarm after which its load was measured, the time, and how long it
        had computed."""
        self.drawn = {False: 0, True: 0}
        """Comparisons that were drawn: of calls in time, and of late ones (True)."""
        self.threads = Threads()
        self.lock, self.running = threading.RLock(), threading.RLock()
        """The second is held while the stand-in runs, so that no process is forked meanwhile."""
        _clients.add(self)

    def kind(self, name: str, form: Form | None = None) -> "Kind":
        """Return what is known of calls of this kind, whose answers have this form from now on."""
        kind = self._kind(name)
        if form is not None:
            kind.take(form)
        return kind

    @property
    def open(self) -> bool:
        """True if the stand-in can be asked."""
        if self.threads.closed or len(self.computed) >= MAX_WAITING:
            return False
        since, self._refilled = self._refilled, now()
        income = self.cpu * (self._refilled - since)
        self._computing = min(self.cpu, self._computing + income)
        return self._computing > 0

    def check(self, inputs: Inputs) -> None:
        """Raise DataError if the rows do not fit the model, unless such rows have fitted before."""
        if self.backup is None or callable(inputs):
            return
        arrays = inputs.values() if isinstance(inputs, dict) else (inputs,)
        shapes = tuple([(x.shape[1:], x.dtype) for x in arrays if isinstance(x, np.ndarray)])
        if shapes not in self._fitting:
            self.backup.read(inputs)
            if len(self._fitting) < MAX_SHAPES:
                self._fitting.add(shapes)

    def submit(
        self, ask: Callable[[Array, RunOptions], T], inputs: Inputs, run: RunOptions
    ) -> "Future[tuple[T | Refusal, float]]":
        """Ask the stand-in in a thread, which returns the output and the seconds that it took."""
        backup = self.backup
        assert backup is not None

        def compute() -> tuple[T | Refusal, float]:
            started = now()
            try:
                with self.running:
                    output = ask(backup.read(inputs() if callable(inputs) else inputs), run)
            except BaseException as error:  # of rows that do not fit; the call itself goes on
                _log.warning("the backup cannot read the rows: %s", error)
                return Refusal.FAILED, now() - started
            return output, now() - started

        running = self.threads.backup.submit(compute)
        self.computed.add(running)
        running.add_done_callback(self.computed.discard)
        return running

    def spent(self, seconds: float) -> None:
        """A stand-in has computed for this long."""
        self._computing -= seconds

    def woke(self, at: float, due: float, median: float) -> None:
        """Learn how late the event loop runs alarms, and how busy its thread is."""
        before, since, computed = self._measured
        if at >= since + MEASURE_INTERVAL:
            thread, total = threading.get_ident(), time.thread_time()
            if thread == before:
                self.process_load.measured((total - computed) / (at - since))
            self._measured = thread, at, total
        if due > self._last_alarm:  # else it waited for other alarms
            self.process_load.waited(min(at - due, max(median, STALL)), median)
        self._last_alarm = at

    def draws(self, *, late: bool) -> bool:
        """Draw whether to compare a call: a late one, or one in time while the stand-in idles."""
        one_in = self.compare_late if late else self.compare_in_time
        if not due(self.drawn[late], one_in, self.random):
            return False
        may = len(self.compared) < MAX_COMPARED if late else self.open and not self.computed
        self.drawn[late] += may
        return may

    def after_fork(self) -> None:
        """Go on in a forked process, which has none of the threads and none of the calls."""
        self.lock, self.running = threading.RLock(), threading.RLock()
        self.threads.reset()
        self.computed.clear()
        self.compared.clear()
        for server in self.servers.all:
            server.in_flight = 0
        if self.backup is not None:
            self.backup.after_fork()


_clients: WeakSet[Client] = WeakSet()

_forking = threading.RLock()

_held = ExitStack()
"""The locks that a fork holds, as a lock of ONNX Runtime that is held by a thread which the new
process does not have would never be released there."""


def _before_fork() -> None:
    _held.enter_context(_forking)
    for client in [*_clients]:
        _held.enter_context(client.running)


def _after_fork() -> None:
    _held.pop_all().close()


def _in_child() -> None:
    _after_fork()
    for client in [*_clients]:
        try:
            client.after_fork()
        except Exception:  # the others go on all the same
            _log.exception("a forked process keeps nothing that this Late learns")


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


class Kind:
    """What is known of calls of one kind, and the conditions that their races ask about
    (race.View)."""

    idle, busy = True, 0.0

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name = client, name
        runs = RunTimes(first=KNOWN_AFTER)
        self.rule = Rule(0.0, client.copies, runs=runs, may_hang=True)
        self.rule.copies = _Copies(client.copies, self)
        self.rule.purse, self.rule.not_before = client.purse, client.not_before
        self.codec: Codec | None = None
        """The form of answers, given or learned from the first; None while it is unknown."""
        self.slowness = 0.0
        """The share of recent calls for which the target was slow."""
        if client.form is not None:
            self.take(client.form)

    def take(self, form: Form) -> None:
        """Read and make answers in this form."""
        backup, codec = self.client.backup, self.codec
        if backup is not None and (codec is None or codec.form is not form):
            self.codec = Codec(form, backup.output, labels=backup.labels)

    def learn(self, value: Any) -> Codec | None:
        """Learn the form of answers from one. Raises UserError if it cannot be imitated."""
        backup = self.client.backup
        if backup is not None:
            self.codec = form_of(value, backup.output, backup.other_outputs, backup.labels)
        return self.codec

    @property
    def waiting(self) -> float:
        return self.slowness / max(NEWEST, 1 - self.slowness)

    @property
    def open(self) -> bool:
        backup = self.client.backup
        return backup is not None and self.codec is not None and self.client.open

    @property
    def helps(self) -> bool:
        return not self.client.process_load.is_bottleneck

    def ended(self, server: Server, seconds: float, *, finished: bool) -> None:
        """Learn from the run time of a call, which ran to its end or not."""
        self.rule.ended(DEPLOYED, seconds, finished=finished)
        fastest = self.rule.runs.quantile(NO_QUEUE)
        if fastest:
            is_slow = seconds > self.client.congested * fastest
            if finished or is_slow:
                self.slowness += NEWEST * (is_slow - self.slowness)
            server.ended(now(), seconds / self.rule.median, finished=finished)

    def failed(self, server: Server, failure: str) -> None:
        """A call has failed. The log has the first failure, the second, the fourth, and so on."""
        server.ended(now(), FAILED)
        counts = self.client.counts
        counts["failed"] += 1
        if counts["failed"].bit_count() == 1:
            _log.warning("%d calls have failed; the newest: %s", counts["failed"], failure)

    def compare_later(
        self,
        call: "asyncio.Future[Any]",
        server: Server,
        started: float,
        made: Array,
        codec: Codec,
    ) -> None:
        """Compare the backup's answer with the result of the call, once it is there."""
        compared = self.client.compared

        def ended(call: "asyncio.Future[Any]") -> None:
            with self.client.lock:
                server.in_flight -= 1
                compared.discard(call)
                if not call.cancelled() and call.exception() is None:
                    self.ended(server, now() - started, finished=True)
                    self.compare(made, call.result(), codec, late=True, answered=True)

        compared.add(call)
        call.add_done_callback(ended)

    def compare_in_time(self, inputs: Inputs, value: Any, codec: Codec) -> None:
        """Ask the backup as well for a call that was answered in time, now and then."""
        client, backup = self.client, self.client.backup
        if backup is None or not client.draws(late=False):
            return

        def ended(run: "asyncio.Future[tuple[Array | Refusal, float]]") -> None:
            if run.cancelled():
                return
            made, seconds = run.result()
            with client.lock:
                client.spent(seconds)
                if not isinstance(made, Refusal):
                    self.compare(made, value, codec, late=False)

        running = client.submit(backup.run, inputs, run_options())
        asyncio.wrap_future(running).add_done_callback(ended)

    def compare(
        self, made: Array, value: Any, codec: Codec, *, late: bool, answered: bool = False
    ) -> None:
        """Compare the backup's output with an answer of the model."""
        client, backup = self.client, self.client.backup
        assert backup is not None
        output = None if is_error(value) else codec.read(value)
        if output is None or len(output) != len(made):
            return
        agreed = backup.compare(made, output, late=late, answered=answered)
        if agreed is not None:
            given = " late" if late else ""
            client.counts["compared" + given] += 1
            client.counts["disagreed" + given] += not agreed
            reason = ("agreed" if agreed else "disagreed") + given
            self.tell(None, "comparison", Source.BACKUP, reason)

    def tell(self, since: float | None, event: EventName, source: Source, reason: str = "") -> None:
        """Report an event of a call that was made at the time `since`."""
        on_event = self.client.on_event
        if on_event is None:
            return
        seconds = 0.0 if since is None else now() - since
        try:
            on_event(LateEvent(event, source, self.name, reason, seconds))
        except Exception:  # of the user's function
            _log.exception("on_event failed; calls are unaffected")


class _Copies(Budget):
    """A budget of copies that allows none while the target is slow for many calls."""

    def __init__(self, share: float, kind: Kind) -> None:
        super().__init__(share, BURST)
        self._kind = kind

    def spend(self) -> bool:
        return self._kind.slowness < FULL and super().spend()


class Threads:
    """Threads that are started when they are first used: of the backup, of blocking calls, and of
    the event loop that these are raced on. They know nothing of a Late, which ends them when it is
    deleted."""

    def __init__(self) -> None:
        self.closed = False
        self.reset()

    def reset(self) -> None:
        """Forget all threads, as a forked process does not have them."""
        self.backup = ThreadPoolExecutor(1, "parm-backup")
        self.callers = ThreadPoolExecutor(MAX_CALLERS, "parm-call")
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
