"""Race a call that is late with a stand-in in this process, or with a copy of the call.

The rule is the `adaptive` policy's, with its run times, risk, benefit, budget and effect. Only the
driver differs: a client, which knows neither the instances behind its call nor their load. Once a
call is late, the more beneficial of a stand-in and a copy is started, and later the other one. The
first answer wins; the rest is cancelled.

A copy costs the target as much as a call. So copies have a budget, and stop if they bring no
earlier answers, and while the target is slow for many calls. A stand-in costs computing time of
this process, which has a budget. While the target is slow for most calls, a stand-in is asked in
place of each, and the call is made only if it refuses.

A balancer may send a copy to the same slow server as the call. So a call that has reached
`adaptive`'s limit of tasks still gets another one whenever its age has doubled.
"""

import asyncio
import inspect
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count, islice
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Self

import onnxruntime
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import UserError
from parity_models.late.values import Form, form_of, is_error
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.onnx_model import run_options
from parity_models.models.signature import Batch
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies.adaptive import BURST, HELD_UP, OLDEST, RESERVE, Adaptive
from parity_models.scheduling.policies.effect import Effect
from parity_models.scheduling.policies.policy import Budget
from parity_models.scheduling.policies.risk import Choice, Risk
from parity_models.scheduling.process_load import ProcessLoad
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit
from parity_models.trust.backup import GatedBackup, Refusal

now = time.monotonic

NO_QUEUE = 0.1
"""The share of calls that wait in no queue."""

KNOWN_AFTER = 20
"""Calls after which their run times are known."""

ASKED_SHARE = 0.2
"""The largest share of calls for which a stand-in is asked: the slowest ones."""

COMPARE_ONE_IN = 20
"""One in this many calls that a stand-in has answered may finish, to compare the answers."""

MAX_COMPARED = 16
"""The most calls that run on at a time for a comparison."""

CONGESTED = 4.0
"""The target is slow for a call that takes this many times as long as one that waits in no queue.
Calls that a stand-in answered first do not count; those that a copy answered first do."""

FULL, RECENT_COPIES = 0.15, 64
"""While the target is slow for the share FULL of the RECENT_COPIES latest calls, no copies are
sent, as they would make other calls wait."""

OVERLOADED, RECENT = 0.6, 16
"""While the target is slow for the share OVERLOADED of the RECENT latest calls, a stand-in is asked
in place of each call, and calls that it refuses get no copies."""

MAX_CALLERS = 64
"""The most blocking calls at a time."""

MAX_WAITING = 64
"""The most calls that wait for a stand-in."""

AGAIN_AFTER = 0.25
"""A call is reconsidered after this share of its age, so hanging calls cost little time."""

STALL = 0.01
"""A stall of the event loop counts as at most this many seconds, or a median run time if that is
longer: one stall is no overload."""

Call = Callable[[], Awaitable[Any]]
Array = NDArray[Any]


class LateAnswer(NamedTuple):
    """An answer: `value` is the result of the call.

    `source` is "model", "copy" (of the call), or "backup". `agreement` is the calibrated
    probability that the model says the same, 1 for its own answers.
    """

    value: Any
    source: str
    agreement: float


class Late:
    """Answer late calls from a stand-in, or from a copy of the call.

    late = Late("bundle", agreement=0.99)
    answer = await late(lambda: triton.infer("model", inputs), rows)
    answer.value, answer.source, answer.agreement

    One object serves the calls to one model, on one event loop at a time. Nothing runs between
    calls. Its threads end when `close` is called, a `with` or `async with` block ends, or the
    object is deleted.

    Args:
        bundle: A bundle with a backup, its folder, or a backup that is open already. None: only
            copies.
        agreement: Minimum calibrated agreement with the model for stand-in answers. None: the
            highest calibrated level up to 99 %; 0: no gate.
        budget: Maximum copies per call, on average.
        cpu: Maximum computing time of stand-ins, as a share of one core.

    Raises:
        UserError: The bundle has no backup that is calibrated for the agreement, or an option is
            out of range.
        BundleError: The bundle cannot be opened.

    """

    def __init__(
        self,
        bundle: Bundle | GatedBackup | Path | str | None = None,
        *,
        agreement: float | None = None,
        budget: float = 0.1,
        cpu: float = 0.5,
    ) -> None:
        if not 0 < budget <= 1:
            raise UserError(f"budget is a share of the calls, above 0 and up to 1; got {budget}")
        if not 0 < cpu <= 1:
            raise UserError(f"cpu is a share of one core, above 0 and up to 1; got {cpu}")
        if agreement is not None and not isinstance(bundle, Bundle | Path | str):
            raise UserError("an agreement needs a bundle with a backup; give one, or leave it out")
        if isinstance(bundle, Path | str):
            bundle = open_bundle(bundle)
        if isinstance(bundle, Bundle):
            bundle = GatedBackup(bundle, agreement)
        self.counts: Counter[str] = Counter()
        """The "calls"; the answers by source, "model", "copy" and "backup"; the "copies" and
        "backups" that were started; the backups asked "in place" of the call; the answers of
        backups that were "refused", that were "compared" with the model's, and that "disagreed"."""
        self._backup = bundle
        self._form: Form | None = None
        self._servers, self._last_server = 1, 0
        stand_ins = [] if bundle is None else [BACKUP]
        share = max(budget, ASKED_SHARE) if stand_ins else budget
        self._risk = _ClientRisk(RunTimes(first=KNOWN_AFTER), stand_ins, share)
        self._budget = Budget(budget, BURST)
        self._computing = _ComputingBudget(cpu)
        self._effect = Effect()
        self._process_load = ProcessLoad()
        self._last_alarm = 0.0
        self._slow = deque([False] * RECENT_COPIES, RECENT_COPIES)
        """For each recent call, True if the target was slow."""
        self._in_flight: dict[int, float] = {}
        """The start of each call in flight that is not slow yet, the oldest first."""
        self._ids = count(1)
        self._compared: set[asyncio.Future[Any]] = set()
        self._threads = _Threads()
        self._finalizer = weakref.finalize(self, self._threads.close)

    async def __call__(
        self, call: Call, rows: ArrayLike | Batch | None = None, *, others: Sequence[Call] = ()
    ) -> LateAnswer:
        """Await the call, or the answer in its place if it is late or fails.

        Tasks that still run then are cancelled; if the caller is cancelled, all are.

        Args:
            call: Makes the call: a function that returns an awaitable, such as a lambda. It is
                called again for a copy, so the call must be safe to repeat.
            rows: The inputs of the call, as the bundle's model takes them: an array (n, ...), or
                arrays by name. Without them, no stand-in is asked.
            others: The same call to other servers, to which copies go.

        Raises:
            UserError: The call returns no awaitable, or its first answer is one that a stand-in
                cannot imitate.
            DataError: The rows do not fit the model.
            Exception: The call's own, if no stand-in may answer.

        """
        race = _Race(self, [call, *others], rows)
        try:
            return await race.run()
        finally:
            race.end()

    def call(
        self,
        function: Callable[[], Any],
        rows: ArrayLike | Batch | None = None,
        *,
        others: Sequence[Callable[[], Any]] = (),
    ) -> LateAnswer:
        """Make a blocking call; `__call__` is for coroutines. Many threads may use it.

        Functions run in threads of this object, up to 64 at a time. So a client that threads cannot
        share must be made in the function. A cancelled function still runs to its end, and the
        process waits for it; give clients a timeout.
        """
        loop = self._threads.loop()

        def in_thread(each: Callable[[], Any]) -> Call:
            return lambda: loop.run_in_executor(self._threads.callers, each)

        async def race() -> LateAnswer:
            return await self(in_thread(function), rows, others=[in_thread(x) for x in others])

        answer = asyncio.run_coroutine_threadsafe(race(), loop)
        try:
            return answer.result()
        finally:
            answer.cancel()  # if the caller was interrupted

    def close(self) -> None:
        """End its threads. Blocking calls in flight are cancelled; others get no stand-in."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        for call in [*self._compared]:
            call.cancel()

    # For its races

    def _count_slow(self) -> None:
        """Count the calls in flight for which the target is slow by now."""
        calls, fastest = self._in_flight, self._risk.fastest
        while fastest and calls and now() - next(iter(calls.values())) > CONGESTED * fastest:
            del calls[next(iter(calls))]
            self._slow.append(True)

    def _slowness(self, recent: int) -> float:
        """Return the share of recent calls for which the target was slow."""
        return sum(islice(reversed(self._slow), recent)) / recent

    def _ran(self, task: Task, *, finished: bool) -> None:
        """Learn from the run time of a task, which ran to its end or not."""
        assert task.unit is not None
        if task.role == DEPLOYED or not finished:
            task.unit.took = now() - task.unit.started
        servers = range(self._servers)
        self._risk.ended(now(), task.unit, finished=finished, instances=servers, max_batch=1)

    def _server_for_copy(self, calls: int) -> int:
        """Return which of `calls` calls, each to a different server, to repeat: all but the first
        in turn, and slow servers only if there are no others."""
        if calls == 1:
            return 0
        self._last_server += 1
        turn = [1 + (self._last_server + each) % (calls - 1) for each in range(calls - 1)]
        return next((each for each in turn if str(each) not in self._risk.slow), turn[0])

    def _compare(self, call: "asyncio.Future[Any]", task: Task, answer: Array) -> bool:
        """Let the call finish if it is due for a comparison with the backup's answer."""
        if self.counts[Source.BACKUP] % COMPARE_ONE_IN or len(self._compared) >= MAX_COMPARED:
            return False

        def compare(call: "asyncio.Future[Any]") -> None:
            self._compared.discard(call)
            if call.cancelled() or call.exception() is not None:
                return
            self._ran(task, finished=True)
            assert self._form is not None
            assert self._backup is not None
            if not is_error(call.result()):
                output = self._form.read(call.result())
                if output is not None and output.shape == answer.shape:
                    self.counts["compared"] += 1
                    self.counts["disagreed"] += not self._backup.compare(answer, output)

        self._compared.add(call)
        call.add_done_callback(compare)
        return True


class _Race:
    """A call, with the copies and the stand-in that are started for it."""

    def __init__(self, late: Late, calls: Sequence[Call], inputs: ArrayLike | Batch | None) -> None:
        self._late, self._calls, self._inputs = late, calls, inputs
        if late._form is None and late._backup is not None and inputs is not None:
            late._backup.read(inputs)  # a mistake shows at the first call, not the first late one
        late._servers = max(late._servers, len(calls))
        original = Task(DEPLOYED, next(late._ids), None, instance="0")
        self._query = Query(original.subject, None, now(), inf, original, [original])
        self._running: dict[asyncio.Future[Any], Task] = {}
        self._backup: tuple[Future[Array | Refusal], onnxruntime.RunOptions] | None = None
        """The run of the backup and its options, once it is asked."""
        self._early: Array | None = None
        """A backup's answer that is held until the call is slow."""
        self._given: Array | None = None
        self._failure: asyncio.Future[Any] | None = None
        """The call itself, once it has ended with an error."""
        self._alarm = inf
        self._held_up = False

    async def run(self) -> LateAnswer:
        """Return the first answer, or the error of the call."""
        late, query = self._late, self._query
        late.counts["calls"] += 1
        late._effect.arrived(query.arrived, query.id)
        late._budget.earn()
        late._count_slow()
        compares = (late.counts[Source.BACKUP] + 1) % COMPARE_ONE_IN == 0
        if not compares and late._slowness(RECENT) >= OVERLOADED and self._may_ask_backup():
            late.counts["in place"] += 1
            self._start_backup()
            self._alarm = now() + late._risk.slow_from
        else:
            self._start_original()
        while self._running:
            timeout = None if self._alarm == inf else max(0.0, self._alarm - now())
            done, _ = await asyncio.wait(
                self._running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for future in done:
                answer = self._ended(future, self._running.pop(future))
                if answer is not None:
                    return answer
            answer = None if done else self._on_alarm(now())
            if answer is not None:
                return answer
        assert self._failure is not None
        return LateAnswer(self._failure.result(), "model", 1.0)

    def end(self) -> None:
        """Cancel all tasks that still run, except a call that is to be compared."""
        late, query = self._late, self._query
        late._in_flight.pop(query.id, None)
        late._effect.ended(now(), query.id, now() - query.arrived, late._risk.helped_by)
        for future, task in self._running.items():
            is_original = task is query.original
            if is_original and self._given is not None and late._compare(future, task, self._given):
                continue
            future.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # or asyncio logs it
            if task.role == BACKUP and self._backup is not None:
                run, options = self._backup
                if run.cancel():  # it had not begun
                    late._computing.ended(0.0)
                    continue
                options.terminate = True
            late._ran(task, finished=False)
            if task.role == DEPLOYED:
                future.cancel()

    # Start

    def _start_original(self) -> None:
        self._late._in_flight[self._query.id] = now()
        self._start_call(self._query.original)

    def _start_call(self, task: Task) -> None:
        task.unit = Unit(task.subject, task.instance or "", DEPLOYED, [task], now())
        future: asyncio.Future[Any]
        try:
            future = asyncio.ensure_future(_awaitable(self._calls[int(task.instance or 0)]))
        except Exception as error:  # a call that cannot even be made counts as failed
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        self._launch(task, future)

    def _start_copy(self) -> None:
        late = self._late
        late.counts["copies"] += 1
        late._budget.spend()
        server = late._server_for_copy(len(self._calls))
        self._start_call(Task(DEPLOYED, self._query.id, None, instance=str(server)))

    def _start_backup(self) -> None:
        late, query = self._late, self._query
        assert late._backup is not None
        late.counts["backups"] += 1
        options = run_options()
        task = Task(BACKUP, query.id, None)
        late._computing.begin()
        unit = task.unit = Unit(query.id, "", BACKUP, [task], now())
        run = late._threads.backup.submit(self._compute, unit, late._backup, options)
        self._backup = run, options
        self._launch(task, asyncio.wrap_future(run))

    def _launch(self, task: Task, future: "asyncio.Future[Any]") -> None:
        """Reconsider the call once this task makes it late."""
        self._running.setdefault(future, task)  # a copy may be the very future of the call
        assert task.unit is not None
        age = self._late._risk.age(self._query, task)
        self._alarm = inf if age is None else task.unit.started + age

    def _compute(
        self, unit: Unit, backup: GatedBackup, options: onnxruntime.RunOptions
    ) -> Array | Refusal:
        """Ask the backup, in a thread. Return its answer, or the reason why there is none."""
        assert self._inputs is not None
        unit.started = now()
        try:
            return backup.answer(backup.read(self._inputs), options)
        except Exception:  # such as rows of another shape than before; the call itself goes on
            return Refusal.FAILED
        finally:
            unit.took = now() - unit.started
            self._late._computing.ended(unit.took)

    # Reconsider

    def _on_alarm(self, time: float) -> LateAnswer | None:
        """Give the answer that is held, or start the most beneficial task."""
        late, query, due = self._late, self._query, self._alarm
        if query.original.unit is None:  # the stand-in asked in its place takes long
            self._start_original()
            return None
        if self._early is not None:
            return self._deliver(self._early)
        median = late._risk.benefit.median
        if due > late._last_alarm:  # else it waited for other alarms
            late._process_load.waited(min(time - due, max(median, STALL)), median)
        late._last_alarm = time
        self._alarm = time + max(median, AGAIN_AFTER * (time - query.arrived))
        if time > due + HELD_UP and not self._held_up:  # answers were held up, too; they come first
            self._alarm, self._held_up = time + HELD_UP, True
            return None
        self._held_up = False
        if late._process_load.is_bottleneck:
            return None
        newest = max(self._running.values(), key=_started)
        twice_as_old = 2 * _started(newest) - query.arrived
        if len(self._running) >= Adaptive.MAX_TASKS and time < twice_as_old:
            self._alarm = twice_as_old
            return None
        late._count_slow()
        offers: list[tuple[float, Callable[[], None]]] = []
        if self._may_ask_backup():
            offers.append((self._worth(BACKUP, time, newest), self._start_backup))
        helps_from = late._effect.helps_from(query.id, query.arrived)
        reserve = 0.0 if time - query.arrived > OLDEST * median else RESERVE
        limit, recent = (OVERLOADED, RECENT) if query.exact else (FULL, RECENT_COPIES)
        if time < helps_from:
            self._alarm = min(self._alarm, helps_from)
        elif (
            self._failure is None
            and late._budget.left >= 1 + reserve
            and late._slowness(recent) < limit
        ):
            offers.append((self._worth(DEPLOYED, time, newest), self._start_copy))
        worth, start = max(offers, key=lambda offer: offer[0], default=(0.0, None))
        if worth > 0 and start is not None:
            start()
        return None

    def _worth(self, role: str, time: float, newest: Task) -> float:
        risk = self._late._risk
        choice = risk.choice(role)
        return risk.saved(time, choice, self._query, newest) - risk.benefit.cost(choice)

    def _may_ask_backup(self) -> bool:
        late = self._late
        known = late._form is not None and self._inputs is not None and late._finalizer.alive
        return known and self._backup is None and late._computing.is_left(now())

    # Ends

    def _ended(self, future: "asyncio.Future[Any]", task: Task) -> LateAnswer | None:
        """Return the answer that this task gives, if it gives one now."""
        late = self._late
        if task.role == BACKUP:
            closed = future.cancelled()
            return self._backup_ended(Refusal.FAILED if closed else future.result(), task)
        is_original = task is self._query.original
        failed = future.cancelled() or future.exception() is not None
        if not failed and not is_error(value := future.result()):
            if late._form is None and (backup := late._backup) is not None:
                late._form = form_of(value, backup.output, backup.other_outputs)
            late._ran(task, finished=True)
            late._count_slow()
            if late._in_flight.pop(self._query.id, None):
                late._slow.append(not is_original)
            source = "model" if is_original else "copy"
            late.counts[source] += 1
            return LateAnswer(value, source, 1.0)
        if is_original:  # a copy's failure says nothing
            self._failure = future
            if self._may_ask_backup():
                self._start_backup()
        return self._deliver(self._early) if self._failure and self._early is not None else None

    def _backup_ended(self, answer: Array | Refusal, task: Task) -> LateAnswer | None:
        late, query = self._late, self._query
        late._ran(task, finished=True)
        late._risk.stand_ins[BACKUP].answered(usable=not isinstance(answer, Refusal))
        if isinstance(answer, Refusal):
            late.counts["refused"] += 1
            query.exact = True
            if query.original.unit is None:
                self._start_original()
            else:
                self._alarm = now()  # reconsider it at once, for a copy: it is late already
            return None
        if query.original.unit is None:
            return self._deliver(answer)
        given = _started(query.original) + late._risk.slow_from
        if self._failure is not None or now() >= given:
            return self._deliver(answer)
        self._early, self._alarm = answer, given
        return None

    def _deliver(self, answer: Array) -> LateAnswer:
        late = self._late
        assert late._form is not None
        assert late._backup is not None
        self._given = answer
        late.counts[Source.BACKUP] += 1
        return LateAnswer(late._form.make(answer), str(Source.BACKUP), late._backup.agreement)


def _awaitable(call: Call) -> Awaitable[Any]:
    made = call()
    if inspect.isawaitable(made):
        return made
    found = "a stream" if hasattr(made, "__aiter__") else f"an object of {type(made)}"
    raise UserError(
        f"the call gave {found} and not an awaitable; give a function that makes the call, as "
        "lambda: client.infer(...), and use Late.call for calls that block"
    )


def _started(task: Task) -> float:
    assert task.unit is not None
    return task.unit.started


class _ClientRisk(Risk):
    """The risk of calls to servers known only by their run times.

    A call that waits in no queue takes as long as the fastest; so the load, by which copies are
    priced, is the share of the median call that is spent waiting. Stand-ins cost the servers
    nothing, and are asked for a larger share of calls than copies are made for.
    """

    def choice(self, role: str, rows: int = 1) -> Choice:
        """Return the choice; a stand-in costs the servers no work."""
        choice = super().choice(role, rows)
        return choice if role == DEPLOYED else replace(choice, work=0.0)

    @property
    def fastest(self) -> float | None:
        """The time of a call that waits in no queue; None while it is unknown."""
        return self._run_times.quantile(NO_QUEUE)

    def _measure_help(self) -> None:
        """Measure the age by which a copy has answered; stand-ins are asked before copies."""
        super()._measure_help()
        if self.stand_ins:
            self.helped_by += self.benefit.median

    def _measure_load(self, now: float, instances: int) -> None:
        fastest, median = self.fastest, self._run_times.median
        if fastest is not None and median:
            self._load = 1 - fastest / median


class _ComputingBudget:
    """The budget of stand-ins' computing time, a `share` of one core: at most a second's share at
    once. Stand-ins end in another thread."""

    def __init__(self, share: float) -> None:
        self._share = self._left = share
        self._until = now()
        self._asked = 0
        self._lock = threading.Lock()

    def is_left(self, time: float) -> bool:
        """Return whether a stand-in may be asked."""
        with self._lock:
            self._left = min(self._share, self._left + self._share * (time - self._until))
            self._until = time
            return self._left > 0 and self._asked < MAX_WAITING

    def begin(self) -> None:
        with self._lock:
            self._asked += 1

    def ended(self, seconds: float) -> None:
        """A stand-in has computed for this long."""
        with self._lock:
            self._left -= seconds
            self._asked -= 1


class _Threads:
    """Threads that are started when they are first used: of the backup, of blocking calls, and of
    the event loop that these are raced on."""

    def __init__(self) -> None:
        self.backup = ThreadPoolExecutor(1, "parm-backup")
        self.callers = ThreadPoolExecutor(MAX_CALLERS, "parm-call")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._closed = False

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs in a thread. Raises UserError after `close`."""
        with self._lock:
            if self._closed:
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
            self._closed = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # at its end, cancels what runs
        runner.get_loop().run_forever()
