"""A server of a bundle's backup alone, for proxies: it answers at once, or refuses at once."""

import asyncio
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from parity_models.bundle.backup import GatedBackup, Judged, Refusal
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.roles import BACKUP, Source
from parity_models.serving.errors import NoStandInError
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.options import ServeOptions
from parity_models.trust.evidence import WRITE_EVERY
from parity_models.trust.gates import evidence_of

_WHY = {
    Refusal.UNLIKE: "an input is unlike those that the stand-in learned from",
    Refusal.UNSURE: "the stand-in is too unsure of a row",
    Refusal.CLOSED: "the stand-in no longer agrees with the model",
    Refusal.FAILED: "the stand-in failed",
}


class BackupPredictor:
    """Answers by a bundle's backup, in `threads` threads of this process.

    There is no queue: a request is refused if all threads are busy, or if the backup may not answer
    each of its rows. It sees no model, so it compares nothing: it reads what servers and clients of
    the same bundle have learned, from their files.
    """

    differ = None
    quarantined: Collection[str] = ()

    def __init__(self, backup: GatedBackup, threads: int, metrics: Metrics) -> None:
        self._backup = backup
        self._metrics = metrics
        self._read_at = time.monotonic()
        self._threads = ThreadPoolExecutor(threads, "parm-backup")
        self._most, self._answering = threads, set[asyncio.Future[Any]]()
        self.ready = True
        """True until the server stops."""

    def check_admission(self, rows: int, timeout: float | None = None) -> None:
        """Raise NoStandInError if all threads are busy."""
        if len(self._answering) == self._most:
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
        began, run = time.monotonic(), run_options()
        if began > self._read_at + WRITE_EVERY:
            self._read_at = began
            self._threads.submit(self._backup.refresh)
        try:
            answering = asyncio.get_running_loop().run_in_executor(
                self._threads, self._backup.answer, rows, run
            )
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
            answer = await asyncio.shield(answering)
        except asyncio.CancelledError:
            run.terminate = True
            raise
        if isinstance(answer, Judged) and answer.refusal is not None:
            answer = answer.refusal
        if isinstance(answer, Refusal):
            self._metrics.refused_answers.labels(BACKUP, answer).inc(len(rows))
            raise NoStandInError(_WHY[answer], answer)
        took = time.monotonic() - began
        for _ in rows:
            self._metrics.latency(Source.BACKUP).observe(took)
        outputs, layout = answer.outputs, self._backup.signature.kind_of(rows[0, ...]).output
        if layout.is_record:  # requests for the other outputs are exact
            outputs = layout.zeros(len(rows))
            outputs[self._backup.output.name] = answer.outputs
        return Result(outputs, [Source.BACKUP] * len(rows), answer.doubts.tolist())

    def retire(self) -> None:
        """Stop being ready, but still answer."""
        self.ready = False

    async def drain(self) -> None:
        """Return when the requests in flight have ended."""
        if self._answering:
            await asyncio.wait(self._answering)

    async def stop(self) -> None:
        """End the threads, once they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def stand_in_only(bundle: Bundle, options: ServeOptions) -> ServedVersion:
    """Return a bundle's backup to be served alone, with as many threads as the options' workers.

    Raises:
        UserError: The bundle has no backup.

    """
    evidence = evidence_of(bundle, options.state, keep=False)
    backup = GatedBackup(bundle, options.agreement, evidence=evidence)
    metrics = Metrics(bundle.digest)
    model = ServedModel.of(
        bundle,
        options.name,
        {Source.BACKUP: backup.gate},
        max_rows=options.max_queue,
        stood_in=frozenset({backup.output.name}),
    )
    served = ServedVersion(BackupPredictor(backup, options.workers, metrics), model, metrics)
    served.title = f"the stand-ins of {model.name}"
    served.description = f"threads: {options.workers}"
    served.notes = tuple(backup.notes)
    return served
