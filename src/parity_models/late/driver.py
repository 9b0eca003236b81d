"""Drive the race of a call on an event loop.

scheduling/race.py has the rule: when to ask the stand-in, when its output answers, when to send a
copy. This driver carries out its actions, for a client that knows neither the instances behind its
call nor their load (client.py):

- If the call fails, the stand-in's output answers at any price that the purse can pay.
- A balancer may have sent all copies to one slow server, so a call that hangs gets another one
  whenever its age has doubled.
- One in COMPARE_ONE_IN of the stand-in's answers, and more of the first, is compared with the
  model's: the call runs on, or is made in the background. Of calls that are answered in time, about
  one in 30 is compared as well.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from math import inf
from typing import Any, NamedTuple

import onnxruntime
from numpy.typing import ArrayLike

from parity_models.bundle.backup import Judged, Refusal
from parity_models.bundle.onnx_model import run_options
from parity_models.errors import UserError
from parity_models.late.client import Client, now
from parity_models.late.values import Codec, form_of, is_error
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.race import Action, Answer, Race, WakeAt
from parity_models.tensors.signature import Batch

Call = Callable[[], Awaitable[Any]]


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

    def __init__(
        self,
        client: Client,
        calls: Sequence[Call],
        inputs: ArrayLike | Batch | None,
        form: Codec | None,
    ) -> None:
        self._client, self._calls, self._inputs = client, calls, inputs
        self._form = form or client.form
        exact = self._form is None or inputs is None or not client.rule.purse.share
        if self._form is None and client.backup is not None and inputs is not None:
            client.backup.read(inputs)  # a mistake shows at the first call, not the first late one
        self._race = Race(client.rule, now(), inf, exact=exact)
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[LateAnswer | None] = self._loop.create_future()
        """The answer; None if the call failed, and nothing answers in its place."""
        self._running: dict[asyncio.Future[Any], tuple[int, float]] = {}
        """The server and the start of each call."""
        self._original: asyncio.Future[Any] | None = None
        self._failed = False
        self._backup: Future[Judged | Refusal] | None = None
        self._options: onnxruntime.RunOptions | None = None
        self._waits = False
        """True while the backup's output is awaited."""
        self._output: Judged | None = None
        self._took = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> LateAnswer:
        """Return the first answer, or the error of the call."""
        try:
            self._client.counts["calls"] += 1
            self._carry_out(self._race.begin(now(), self._client))
            answer = await self._result
            if answer is not None:
                return answer
            assert self._original is not None
            return LateAnswer(self._original.result(), Source.MODEL, 1.0)
        finally:
            self._end()

    def _end(self) -> None:
        """Cancel all tasks that still run."""
        self._result.cancel()
        self._race.ended(now())
        if self._timer is not None:
            self._timer.cancel()
        for call, (server, started) in self._running.items():
            self._client.in_flight.pop(call, None)
            self._client.ended(server, now() - started, finished=False)
            call.cancel()
        if self._backup is not None and not self._backup.cancel() and self._options is not None:
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
        client, server = self._client, 0
        if self._original is not None:
            client.counts["copies"] += 1
            server = client.server_for_copy(len(self._calls))
        call: asyncio.Future[Any]
        try:
            call = asyncio.ensure_future(_awaitable(self._calls[server]))
        except Exception as error:  # a call that cannot even be made counts as failed
            call = self._loop.create_future()
            call.set_exception(error)
        started = now()
        if self._original is None:
            self._original = call
            client.in_flight[call] = started
        if call not in self._running:  # a copy may be the very future of the call
            self._running[call] = server, started
            call.add_done_callback(self._call_ended)

    def _ask_backup(self) -> None:
        client = self._client
        client.counts["backups"] += 1
        client.counts["in place"] += self._race.withheld
        self._waits, self._options = True, run_options()
        self._backup = client.threads.backup.submit(self._compute, self._options)
        client.computed.add(self._backup)
        self._backup.add_done_callback(client.computed.discard)
        asyncio.wrap_future(self._backup).add_done_callback(self._backup_ended)

    def _compute(self, options: onnxruntime.RunOptions) -> Judged | Refusal:
        """Ask the backup, in a thread. Return its answer, or the reason why there is none."""
        backup, inputs, started = self._client.backup, self._inputs, now()
        assert backup is not None
        assert inputs is not None
        try:
            return backup.answer(backup.read(inputs), options)
        except Exception:  # such as rows of another shape than before; the call itself goes on
            return Refusal.FAILED
        finally:
            self._took = now() - started

    def _answer(self, doubt: float) -> None:
        """Answer with the backup's output, and compare it now and then."""
        client, output, call = self._client, self._output, self._original
        assert output is not None
        assert self._form is not None
        client.counts[Source.BACKUP] += 1
        if not self._failed and client.draws():
            if call is None:
                self._ask_model()
            call = self._original
            assert call is not None
            client.compare(call, self._running.pop(call)[1], output.made, self._form)
        try:
            value = self._form.make(output.outputs)
        except Exception as error:  # of the user's function
            self._result.set_exception(error)
            return
        self._result.set_result(LateAnswer(value, Source.BACKUP, round(1 - doubt, 6)))

    # Events

    def _wake_at(self, time: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(time - now(), self._wake, time)

    def _wake(self, due: float) -> None:
        if self._result.done() or self._failed:
            return
        time, client = now(), self._client
        client.woke(time, due)
        self._carry_out(self._race.alarm(time, client))

    def _call_ended(self, call: "asyncio.Future[Any]") -> None:
        failed = call.cancelled() or call.exception() is not None
        if self._result.done():
            return
        client, is_original = self._client, call is self._original
        server, started = self._running.pop(call)
        if failed or is_error(call.result()):  # a copy's failure says nothing
            if is_original:
                client.in_flight.pop(call, None)
                self._failed = True
                self._carry_out(self._race.failed(now(), client))
            self._give_up_if_over()
            return
        backup = client.backup
        if self._form is None and backup is not None:
            try:
                self._form = client.form = form_of(
                    call.result(), backup.output, backup.other_outputs, backup.labels
                )
            except UserError as error:
                self._result.set_exception(error)
                return
        client.answered(call)
        client.ended(server, now() - started, finished=True)
        source = Source.MODEL if is_original else Source.COPY
        client.counts[source] += 1
        self._result.set_result(LateAnswer(call.result(), source, 1.0))
        if self._inputs is not None and self._backup is None and not self._race.exact:
            assert self._form is not None
            client.compare_in_time(self._inputs, call.result(), self._form)

    def _backup_ended(self, run: "asyncio.Future[Judged | Refusal]") -> None:
        client = self._client
        client.spent(self._took)
        self._waits = False
        if self._result.done():
            return
        output = Refusal.FAILED if run.cancelled() else run.result()
        if isinstance(output, Refusal):
            client.counts["refused"] += 1
            self._carry_out(self._race.refused(now()))
        else:
            self._output = output
            client.rule.ended(BACKUP, self._took, finished=True)
            self._carry_out(self._race.answered(now(), output.doubt, client))
        if self._failed and not self._result.done():
            self._carry_out(self._race.lost())
        self._give_up_if_over()

    def _give_up_if_over(self) -> None:
        """End the race if the call has failed, and nothing else runs."""
        if self._failed and not (self._running or self._waits or self._result.done()):
            self._result.set_result(None)


def _awaitable(call: Call) -> Awaitable[Any]:
    made = call()
    if inspect.isawaitable(made):
        return made
    found = "a stream" if hasattr(made, "__aiter__") else f"an object of {type(made)}"
    raise UserError(
        f"the call gave {found} and not an awaitable; give a function that makes the call, as "
        "lambda: client.infer(...), and use Late.call for calls that block"
    )
