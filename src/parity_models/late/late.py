"""Race calls of any client with a stand-in in this process and with copies of the calls."""

import asyncio
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from inspect import iscoroutinefunction
from itertools import chain, repeat
from math import inf
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.errors import UserError
from parity_models.late.client import Client, Inputs, Kind, OnEvent, now
from parity_models.late.driver import Call, Driver, LateAnswer, awaitable
from parity_models.late.servers import Servers
from parity_models.late.values import Form
from parity_models.roles import Source
from parity_models.tensors.signature import Batch
from parity_models.trust.gate import DEFAULT, RequestedLevel

P = ParamSpec("P")
R = TypeVar("R")

_chosen: list[Iterator[Source]] = []
"""The sources of the next answers in `testing`."""


@contextmanager
def testing(*sources: str) -> Iterator[None]:
    """Let each Late give answers of these sources, in this order; the last one repeats.

    This is for tests of programs that use Late. There is no race, and no thread, clock, budget or
    gate decides: "model" is the answer or error of the call; "backup" is the stand-in's answer, and
    the call is made only if the form of answers is unknown; "copy" is the answer of the second call
    of two.
    """
    found = [Source(each) for each in sources]
    _chosen.append(chain(found, repeat(found[-1])))
    try:
        yield
    finally:
        _chosen.pop()


class Late:
    """Answer calls from a stand-in, or from a copy of the call, where that shortens waiting most.

    late = Late("bundle", differ=0.001)
    answer = await late(lambda: triton.infer("model", inputs), rows)
    answer.value, answer.source, answer.agreement

    One object serves the calls to one model, from any thread and event loop, and in forked
    processes. Nothing runs between calls. Its threads end when `close` is called, a `with` or
    `async with` block ends, or the object is deleted. With PARM_LATE=off in the environment, it
    begins paused.

    Args:
        bundle: A bundle with a backup, its folder, or a backup that is open already. None: only
            copies.
        differ: The share of all answers that may differ from the model's; 0: only copies.
        agreement: Minimum calibrated agreement with the model for each of the stand-in's answers.
            None: no minimum; nor is there one by default, unless the backup is limited to some
            classes.
        state: The folder in which what is learned of the stand-in is kept, for the next Late and
            other servers; None: nowhere.
        copies: Maximum copies per call, on average.
        cpu: Maximum computing time of stand-ins, as a share of one core.
        not_before: The age of a call from which stand-ins and copies are asked, in seconds.
        servers: The targets among which each call's is chosen: addresses or clients, say.
        errors: The errors for which a stand-in may answer; others are raised at once.
        form: The form of the calls' answers; None: learned from the first good one.
        on_event: Called with each event, in any thread; see `parity_models.late.metrics`.

    Raises:
        UserError: The bundle has no backup, or one that is not calibrated for these options, or an
            option is out of range.
        BundleError: The bundle cannot be opened.

    """

    def __init__(
        self,
        bundle: Bundle | GatedBackup | Path | str | None = None,
        *,
        differ: float = 0.001,
        agreement: RequestedLevel = DEFAULT,
        state: Path | str | None = None,
        copies: float = 0.1,
        cpu: float = 0.5,
        not_before: float = 0.0,
        servers: Sequence[Any] = (),
        errors: type[Exception] | tuple[type[Exception], ...] = Exception,
        form: Form | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        for name, share in (("copies", copies), ("cpu", cpu)):
            if not 0 < share <= 1:
                raise UserError(f"{name} is a share, above 0 and up to 1; got {share}")
        if not 0 <= not_before < inf:
            raise UserError(f"not_before is a time in seconds, 0 or more; got {not_before}")
        if isinstance(servers, str):
            raise UserError(f"servers are a sequence of servers; give [{servers!r}] for one")
        errors = errors if isinstance(errors, tuple) else (errors,)
        if agreement != DEFAULT and not isinstance(bundle, Bundle | Path | str):
            raise UserError("an agreement needs a bundle with a backup; give one, or leave it out")
        if isinstance(bundle, Path | str):
            bundle = open_bundle(bundle)
        if isinstance(bundle, Bundle):
            kept = None if state is None else bundle.gates.evidence(Path(state))
            bundle = GatedBackup(bundle, agreement, budgeted=True, evidence=kept)
        chosen = Servers(servers, Random())
        self._client = Client(bundle, copies, cpu, not_before, chosen, errors, form, on_event)
        self.counts = self._client.counts
        """The "calls"; the answers by source, "model", "copy" and "backup"; the "copies" and
        "backups" that were started; the calls and copies that "failed"; the backups asked "in
        place" of the call; the outputs of backups that were "refused"; those of calls in time that
        were "compared" with the model's, and that "disagreed"; those of late calls, "compared
        late" and "disagreed late"; and the calls made while "paused"."""
        self._finalizer = weakref.finalize(self, self._client.threads.close)
        self.differ = differ

    @property
    def differ(self) -> float:
        """The share of all answers that may differ from the model's; it can be set at any time."""
        return self._client.purse.share

    @differ.setter
    def differ(self, share: float) -> None:
        backup = self._client.backup
        if not 0 <= share <= 1:
            raise UserError(
                "differ is the share of all answers that may differ from the model's, from 0 to 1; "
                f"got {share}"
            )
        if backup is not None:
            backup.change(share)
        self._client.purse.change(share)

    def pause(self) -> None:
        """Only make calls from now on: no race, no stand-in and no copy."""
        self._client.paused = True

    def resume(self) -> None:
        """Race calls again."""
        self._client.paused = False

    async def __call__(
        self,
        call: Call,
        rows: Inputs | None = None,
        *,
        text: str | Sequence[str] | None = None,
        kind: str = "",
        form: Form | None = None,
    ) -> LateAnswer:
        """Await the call, or the answer in its place if it is late or fails.

        Tasks that still run then are cancelled; if the caller is cancelled, all are.

        Args:
            call: Makes the call: a function that returns an awaitable, such as a lambda. Its
                argument is the server, if there are several. It is called again for a copy, so the
                call must be safe to repeat.
            rows: The inputs of the call, as the bundle's model takes them: an array (n, ...), or
                arrays by name; or a function that returns them, called in a thread once the
                stand-in is asked. Without them, no stand-in is asked.
            text: In place of rows, the text that the call is about, or a list for a batch.
            kind: Calls of each kind have their own run times, and form of answers.
            form: The form of answers to calls of this kind, from now on.

        Raises:
            UserError: The call returns no awaitable, or its first answer is one that a stand-in
                cannot imitate, or there are both rows and a text.
            DataError: The rows do not fit the model.
            Exception: The call's own, if no stand-in may answer.

        """
        if text is not None:
            if rows is not None:
                raise UserError("give rows or a text, not both")
            rows = np.array([text] if isinstance(text, str) else [*text], object)
        client = self._client
        if client.paused or _chosen:
            source = Source.MODEL if client.paused else next(_chosen[-1])
            return await self._direct(source, call, rows, client.kind(kind, form))
        if rows is not None:
            client.check(rows)
        return await Driver(client.kind(kind, form), call, rows).run()

    async def _direct(
        self, source: Source, call: Call, inputs: Inputs | None, kind: Kind
    ) -> LateAnswer:
        """Return the answer of this source without a race."""
        client = self._client
        client.counts["paused"] += client.paused
        make, backup = partial(awaitable, call, client.servers.choose(now())), client.backup
        if source != Source.BACKUP or backup is None or inputs is None:
            value = await make()
            return LateAnswer(await make() if source == Source.COPY else value, source, 1.0)
        codec = kind.codec or kind.learn(await make())
        rows = backup.read(inputs() if callable(inputs) else inputs)
        output = backup.answer(rows, run_options())
        if isinstance(output, Refusal) or codec is None:
            raise UserError(f"the stand-in has no answer to these rows: {output}")
        return LateAnswer(codec.make(output.outputs), source, round(1 - output.doubt, 6))

    def call(
        self,
        function: Callable[..., Any],
        rows: Inputs | None = None,
        *,
        text: str | Sequence[str] | None = None,
        kind: str = "",
        form: Form | None = None,
    ) -> LateAnswer:
        """Make a blocking call; `__call__` is for coroutines. Many threads may use it.

        Functions run in threads of this object, up to 64 at a time. So a client that threads cannot
        share must be made in the function. A cancelled function still runs to its end, and the
        process waits for it; give clients a timeout.
        """
        client = self._client
        if client.paused or _chosen:  # nothing waits, so it is made in this thread

            async def made(*server: Any) -> Any:
                return function(*server)

            try:
                self(made, rows, text=text, kind=kind, form=form).send(None)
            except StopIteration as end:
                answered: LateAnswer = end.value
            return answered
        loop = client.threads.loop()

        def made_in_thread(*server: Any) -> Any:
            try:
                return function(*server)
            except StopIteration as error:  # no future can hold it
                raise RuntimeError("the call raised StopIteration") from error

        async def race() -> LateAnswer | BaseException:
            in_thread = partial(loop.run_in_executor, client.threads.callers, made_in_thread)
            try:
                return await self(in_thread, rows, text=text, kind=kind, form=form)
            except (SystemExit, KeyboardInterrupt) as error:
                return error  # if it were raised, it would end the loop

        racing = asyncio.run_coroutine_threadsafe(race(), loop)
        try:
            answer = racing.result()
        finally:
            racing.cancel()  # if the caller was interrupted
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def answers(
        self, rows: Callable[..., ArrayLike | Batch], *, form: Form | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function that makes a call, async or blocking, and returns its answer.

            @late.answers(lambda text: text)
            async def classify(text: str) -> str: ...

        If there are several servers, the function is called with one before its arguments.

        Args:
            rows: Returns the rows of a call, or a text, from the arguments of the function. It is
                called in a thread, once the stand-in is asked.
            form: The form of its answers; None: learned from the first good one.

        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            def race_of(args: Any, named: Any) -> Any:
                def inputs() -> ArrayLike | Batch:
                    made = rows(*args, **named)
                    return np.array([made], object) if isinstance(made, str) else made

                return lambda *server: function(*server, *args, **named), inputs

            options: Any = {"kind": f"{function.__module__}.{function.__qualname__}", "form": form}

            async def awaited(*args: P.args, **named: P.kwargs) -> Any:
                return (await self(*race_of(args, named), **options)).value

            def blocking(*args: P.args, **named: P.kwargs) -> Any:
                return self.call(*race_of(args, named), **options).value

            made: Any = awaited if iscoroutinefunction(function) else blocking
            return wraps(function)(made)

        return decorate

    def close(self) -> None:
        """End its threads, and keep what was learned. Blocking calls in flight are cancelled;
        others get no stand-in."""
        self._finalizer()
        if self._client.backup is not None:
            self._client.backup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        for call in [*self._client.compared]:
            if call.get_loop() is asyncio.get_running_loop():
                call.cancel()
