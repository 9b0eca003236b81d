"""Drive the race of a call on an event loop.

scheduling/race.py has the rule: when to ask the stand-in, when its output answers, when to send a
copy. This driver carries out its actions, for a client that knows neither the instances behind its
call nor their load (client.py):

- If the call fails, the stand-in's output answers at any price that the purse can pay.
- A balancer may have sent all copies to one slow server, so a call that hangs gets another one
  whenever its age has doubled.
- One in 20 of the stand-in's answers, and more of the first, is compared with the model's: the call
  runs on, or is made in the background. Of calls that are answered in time, about one in 30 is
  compared as well.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from functools import partial
from math import inf
from types import NoneType
from typing import Any, NamedTuple

from onnxruntime import RunOptions

from parity_models.bundle.backup import Judged, Refusal
from parity_models.bundle.onnx_model import run_options
from parity_models.errors import UserError
from parity_models.late.client import Inputs, Kind, now
from parity_models.late.servers import Server
from parity_models.late.values import is_error
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.race import Action, Answer, Race, WakeAt

Call = Callable[..., Awaitable[Any]]


class LateAnswer(NamedTuple):
    """An answer: `value` is the result of the call.

    `source` is the model, a copy (of the call), or the backup. `agreement` is the probability that
    the model says the same, 1 for its own answers.
    """

    value: Any
    source: Source
    agreement: float


class Driver:
    """Drives the race of a call: carries out its actions, and reports what happens."""

    def __init__(self, kind: Kind, call: Call, inputs: Inputs | None) -> None:
        self._kind, self._client, self._call, self._inputs = kind, kind.client, call, inputs
        self._codec, client = kind.codec, kind.client
        exact = client.backup is None or inputs is None or not client.purse.share
        self._arrived = now()
        self._tell = partial(kind.tell, self._arrived)
        self._race = Race(kind.rule, self._arrived, inf, exact=exact)
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Callable[[], LateAnswer]] = self._loop.create_future()
        """Makes the answer, or raises the error of the call if nothing answers in its place."""
        self._running: dict[asyncio.Future[Any], tuple[Server, float]] = {}
        """The server and the start of each call."""
        self._tried: list[Server] = []
        self._original: asyncio.Future[Any] | None = None
        self._failed = False
        self._backup: Future[Any] | None = None
        """The backup's run, while its output is awaited."""
        self._options: RunOptions | None = None
        """The options of that run, once the backup was asked."""
        self._asked_first = False
        """The backup was asked before the model."""
        self._output: Judged | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> LateAnswer:
        """Return the first answer, or the error of the call."""
        client = self._client
        try:
            with client.lock:
                client.counts["calls"] += 1
                self._carry_out(self._race.begin(now(), self._kind))
            make = await self._result
            return make()
        finally:
            with client.lock:
                self._end()

    def _end(self) -> None:
        """Cancel all tasks that still run."""
        self._result.cancel()
        self._race.ended(now())
        if self._timer is not None:
            self._timer.cancel()
        for call, (server, started) in self._running.items():
            self._kind.ended(server, now() - started, finished=False)
            call.cancel()
        if self._backup is not None and not self._backup.cancel():
            assert self._options is not None
            self._options.terminate = True

    # Actions

    def _carry_out(self, actions: Iterable[Action]) -> None:
        wake, todo = inf, [*actions]
        for action in todo:
            if isinstance(action, Answer):
                self._answer(action.doubt)
                return
            if isinstance(action, WakeAt):
                wake = action.time
            elif action.role == BACKUP:
                self._ask_backup()
            else:
                self._ask_model()
                todo += self._race.started(now())
        if wake < inf and not self._failed:
            self._wake_at(wake)

    def _ask_model(self) -> None:
        server = self._client.servers.choose(now(), self._tried)
        call: asyncio.Future[Any]
        try:
            call = asyncio.ensure_future(awaitable(self._call, server))
        except Exception as error:  # a call that cannot even be made counts as failed
            call = self._loop.create_future()
            call.set_exception(error)
        self._tried.append(server)
        if self._original is None:
            self._original = call
            self._tell("start", Source.MODEL)
        else:
            self._client.counts["copies"] += 1
            self._tell("start", Source.COPY)
        if call not in self._running:  # a copy may be the very future of the call
            self._running[call] = server, now()
            server.in_flight += 1
            call.add_done_callback(self._call_ended)

    def _ask_backup(self) -> None:
        client, backup = self._client, self._client.backup
        assert backup is not None
        assert self._inputs is not None
        client.counts["backups"] += 1
        client.counts["in place"] += self._race.withheld
        self._tell("start", Source.BACKUP)
        self._options, self._asked_first = run_options(), self._original is None
        self._backup = client.submit(backup.answer, self._inputs, self._options)
        asyncio.wrap_future(self._backup).add_done_callback(self._backup_ended)

    def _answer(self, doubt: float) -> None:
        """Answer with the backup's output, and compare it now and then."""
        kind, client, output = self._kind, self._client, self._output
        codec = self._codec or kind.codec
        assert output is not None
        assert codec is not None
        client.counts[Source.BACKUP] += 1
        self._tell("answer", Source.BACKUP)
        if not self._failed and client.draws(late=True):
            if self._original is None:
                self._ask_model()
            call = next(iter(self._running), None)  # a copy, if the call itself has failed
            if call is not None:
                kind.compare_later(call, *self._running.pop(call), output.made, codec)
        made, agreement = output.outputs, round(1 - doubt, 6)
        self._result.set_result(lambda: LateAnswer(codec.make(made), Source.BACKUP, agreement))

    # Events

    def _wake_at(self, time: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(time - now(), self._wake, time)

    def _wake(self, due: float) -> None:
        if self._result.done() or self._failed:
            return
        with self._client.lock:
            time, kind = now(), self._kind
            self._client.woke(time, due, kind.rule.median)
            self._carry_out(self._race.alarm(time, kind))

    def _call_ended(self, call: "asyncio.Future[Any]") -> None:
        with self._client.lock:
            if call not in self._running:  # it runs for a comparison
                return
            server, started = self._running.pop(call)
            server.in_flight -= 1
            if self._result.done():
                return
            failure = _failure_of(call)
            if failure is None:
                self._call_answered(call, server, started)
            else:
                self._call_failed(call, server, failure)

    def _call_failed(self, call: "asyncio.Future[Any]", server: Server, failure: str) -> None:
        kind, client, is_original = self._kind, self._client, call is self._original
        assert self._original is not None
        self._tell("failure", Source.MODEL if is_original else Source.COPY, failure)
        kind.failed(server, failure)
        if is_original:
            error = None if call.cancelled() else call.exception()
            if isinstance(error, UserError) or not isinstance(error, (*client.errors, NoneType)):
                self._result.set_result(self._failure)
                return
        if len(self._tried) < len(client.servers.all) and kind.rule.copies.spend():
            self._ask_model()
            self._carry_out(self._race.started(now()))
        elif self._original.done() and not self._failed:  # a copy's failure says nothing
            self._failed = True
            self._carry_out(self._race.failed(now(), kind))
        self._give_up_if_over()

    def _call_answered(self, call: "asyncio.Future[Any]", server: Server, started: float) -> None:
        kind, value = self._kind, call.result()
        codec = self._codec or kind.codec
        try:
            codec = codec or kind.learn(value)
        except UserError as error:
            self._result.set_exception(error)
            return
        kind.ended(server, now() - started, finished=True)
        source = Source.MODEL if call is self._original else Source.COPY
        self._client.counts[source] += 1
        self._tell("answer", source)
        self._result.set_result(lambda: LateAnswer(value, source, 1.0))
        if codec is None or self._inputs is None:
            return
        if self._output is not None and not self._asked_first:
            kind.compare(self._output.made, value, codec, late=True)
        elif self._options is None and not self._race.exact:
            kind.compare_in_time(self._inputs, value, codec)

    def _backup_ended(self, run: "asyncio.Future[tuple[Judged | Refusal, float]]") -> None:
        with self._client.lock:
            output, seconds = (Refusal.FAILED, 0.0) if run.cancelled() else run.result()
            self._client.spent(seconds)
            self._backup = None
            if not self._result.done():
                self._backup_answered(output, seconds)

    def _backup_answered(self, output: Judged | Refusal, seconds: float) -> None:
        kind = self._kind
        refusal = output if isinstance(output, Refusal) else output.refusal
        self._output = None if isinstance(output, Refusal) else output
        if self._output is None or refusal is not None:
            self._client.counts["refused"] += 1
            self._tell("refusal", Source.BACKUP, f"{refusal}")
            self._carry_out(self._race.refused(now()))
        else:
            kind.rule.ended(BACKUP, seconds, finished=True)
            self._carry_out(self._race.answered(now(), self._output.doubt, kind))
        if self._failed and not self._result.done():
            self._carry_out(self._race.lost())
        self._give_up_if_over()

    def _give_up_if_over(self) -> None:
        """End the race if the call has failed, and nothing else runs."""
        if self._failed and not (self._running or self._backup or self._result.done()):
            self._result.set_result(self._failure)

    def _failure(self) -> LateAnswer:
        """Return the call's own answer, if it is an error; else raise the error."""
        assert self._original is not None
        return LateAnswer(self._original.result(), Source.MODEL, 1.0)


def awaitable(call: Call, server: Server) -> Awaitable[Any]:
    """Make the call to the server. Raises UserError unless it can be awaited."""
    made = call(*server.arguments)
    if inspect.isawaitable(made):
        return made
    found = "a stream" if hasattr(made, "__aiter__") else f"an object of {type(made)}"
    raise UserError(
        f"the call gave {found} and not an awaitable; give a function that makes the call, as "
        "lambda: client.infer(...), and use Late.call for calls that block"
    )


def _failure_of(call: "asyncio.Future[Any]") -> str | None:
    """Return how a call has failed; None if it was answered well."""
    if call.cancelled():
        return "CancelledError"
    error = call.exception()
    if error is not None:
        return type(error).__name__
    return "an answer that is an error" if is_error(call.result()) else None
