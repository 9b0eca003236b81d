"""Race calls of any client with a stand-in in this process and with copies of the calls."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from parity_models.bundle.backup import GatedBackup
from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError
from parity_models.late.client import Client
from parity_models.late.driver import Call, Driver, LateAnswer
from parity_models.tensors.signature import Batch
from parity_models.trust.evidence import evidence_of


class Late:
    """Answer calls from a stand-in, or from a copy of the call, where that shortens waiting most.

    late = Late("bundle", differ=0.001)
    answer = await late(lambda: triton.infer("model", inputs), rows)
    answer.value, answer.source, answer.agreement

    One object serves the calls to one model, on one event loop at a time. Nothing runs between
    calls. Its threads end when `close` is called, a `with` or `async with` block ends, or the
    object is deleted.

    Args:
        bundle: A bundle with a backup, its folder, or a backup that is open already. None: only
            copies.
        differ: The share of all answers that may differ from the model's; 0: only copies.
        agreement: Minimum calibrated agreement with the model for each of the stand-in's answers.
            None: no minimum, unless the backup is limited to some classes.
        state: The folder in which what is learned of the stand-in is kept, for the next Late and
            other servers; None: nowhere.
        copies: Maximum copies per call, on average.
        cpu: Maximum computing time of stand-ins, as a share of one core.

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
        agreement: float | None = None,
        state: Path | str | None = None,
        copies: float = 0.1,
        cpu: float = 0.5,
    ) -> None:
        for name, share in (("copies", copies), ("cpu", cpu)):
            if not 0 < share <= 1:
                raise UserError(f"{name} is a share, above 0 and up to 1; got {share}")
        if agreement is not None and not isinstance(bundle, Bundle | Path | str):
            raise UserError("an agreement needs a bundle with a backup; give one, or leave it out")
        if isinstance(bundle, Path | str):
            bundle = open_bundle(bundle)
        if isinstance(bundle, Bundle):
            kept = None if state is None else evidence_of(bundle, Path(state))
            bundle = GatedBackup(bundle, agreement, budgeted=True, evidence=kept)
        self._client = Client(bundle, copies, cpu)
        self.counts = self._client.counts
        """The "calls"; the answers by source, "model", "copy" and "backup"; the "copies" and
        "backups" that were started; the backups asked "in place" of the call; the outputs of
        backups that were "refused"; those of queries in time that were "compared" with the model's,
        and that "disagreed"; and those that answered, "compared late" and "disagreed late"."""
        self._finalizer = weakref.finalize(self, self._client.threads.close)
        self.differ = differ

    @property
    def differ(self) -> float:
        """The share of all answers that may differ from the model's; it can be set at any time."""
        return self._client.rule.purse.share

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
        self._client.rule.purse.change(share)

    async def __call__(
        self,
        call: Call,
        rows: ArrayLike | Batch | None = None,
        *,
        text: str | Sequence[str] | None = None,
        others: Sequence[Call] = (),
    ) -> LateAnswer:
        """Await the call, or the answer in its place if it is late or fails.

        Tasks that still run then are cancelled; if the caller is cancelled, all are.

        Args:
            call: Makes the call: a function that returns an awaitable, such as a lambda. It is
                called again for a copy, so the call must be safe to repeat.
            rows: The inputs of the call, as the bundle's model takes them: an array (n, ...), or
                arrays by name. Without them, no stand-in is asked.
            text: In place of rows, the text that the call is about, or a list for a batch.
            others: The same call to other servers, to which copies go.

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
        return await Driver(self._client, [call, *others], rows).run()

    def call(
        self,
        function: Callable[[], Any],
        rows: ArrayLike | Batch | None = None,
        *,
        text: str | Sequence[str] | None = None,
        others: Sequence[Callable[[], Any]] = (),
    ) -> LateAnswer:
        """Make a blocking call; `__call__` is for coroutines. Many threads may use it.

        Functions run in threads of this object, up to 64 at a time. So a client that threads cannot
        share must be made in the function. A cancelled function still runs to its end, and the
        process waits for it; give clients a timeout.
        """
        threads = self._client.threads
        loop = threads.loop()

        def in_thread(each: Callable[[], Any]) -> Call:
            return lambda: loop.run_in_executor(threads.callers, each)

        async def race() -> LateAnswer:
            further = map(in_thread, others)
            return await self(in_thread(function), rows, text=text, others=[*further])

        answer = asyncio.run_coroutine_threadsafe(race(), loop)
        try:
            return answer.result()
        finally:
            answer.cancel()  # if the caller was interrupted

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
            call.cancel()
