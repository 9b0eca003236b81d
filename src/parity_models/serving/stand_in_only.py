"""A server of a bundle's backup alone, for proxies: it answers at once, or refuses at once."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.roles import BACKUP, Source
from parity_models.serving.errors import NoStandInError
from parity_models.serving.frontend import Result
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedModel, ServedVersion
from parity_models.serving.options import ServeOptions

_WHY = {
    Refusal.UNLIKE: "an input is unlike those that the stand-in learned from",
    Refusal.UNSURE: "the stand-in is too unsure of a row",
    Refusal.CLOSED: "the stand-in no longer agrees with the model",
    Refusal.FAILED: "the stand-in failed",
}


class StandInOnly(ServedVersion):
    """A bundle's backup in threads of this process, as many as the options' `instances`.

    There is no queue: a request is refused if all threads are busy, or if the backup may not answer
    each of its rows.

    Raises:
        UserError: The bundle has no backup that is calibrated for the agreement.

    """

    metrics: Metrics
    feed = None
    differ = None
    notes: Sequence[str] = ()
    roles: Sequence[frozenset[str]] = ()
    quarantined: Collection[str] = ()

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        self._backup = GatedBackup(bundle, options.agreement)
        self._free = self.threads = options.workers
        self._threads = ThreadPoolExecutor(self.threads, "parm-backup")
        self.ready = True
        """True until the server stops."""
        self._idle = asyncio.Event()
        gate = self._backup.gate
        model = ServedModel.of(
            bundle,
            options.name,
            {} if gate is None else {Source.BACKUP: gate},
            max_rows=options.max_queue,
            stood_in=frozenset({self._backup.output.name}),
        )
        super().__init__(self, model, Metrics(bundle.digest))

    def check_admission(self, rows: int, timeout: float | None = None) -> None:
        """Raise NoStandInError if all threads are busy."""
        if not self._free:
            raise NoStandInError("all threads of the stand-in are busy", "busy")

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Result:
        """Answer all rows (n, *input shape). Raises NoStandInError if the backup may not."""
        if exact:
            raise NoStandInError("this server has no model, and the request is exact", "exact")
        self.check_admission(len(rows))
        self._free -= 1
        began, run = time.monotonic(), run_options()
        try:
            answering = asyncio.get_running_loop().run_in_executor(
                self._threads, self._backup.answer, rows, run
            )
            answering.add_done_callback(self._answered)
            answer = await asyncio.shield(answering)
        except asyncio.CancelledError:
            run.terminate = True
            raise
        if isinstance(answer, Refusal):
            self.metrics.refused_answers.labels(BACKUP, answer).inc(len(rows))
            raise NoStandInError(_WHY[answer], answer)
        took = time.monotonic() - began
        for _ in rows:
            self.metrics.latency(Source.BACKUP).observe(took)
        return Result(answer.outputs, [Source.BACKUP] * len(rows), answer.doubts.tolist())

    def _answered(self, _: object) -> None:
        self._free += 1
        if self._free == self.threads:
            self._idle.set()

    async def start(self) -> None:
        """Do nothing: the backup is loaded and warm."""

    def retire(self) -> None:
        """Stop being ready, but still answer."""
        self.ready = False

    async def drain(self) -> None:
        """Return when the requests in flight have ended."""
        self._idle.clear()
        if self._free < self.threads:
            await self._idle.wait()

    async def stop(self) -> None:
        """End the threads, once they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def feed_of(self, asked: Mapping[str, str]) -> None:
        """Return no live feed."""
