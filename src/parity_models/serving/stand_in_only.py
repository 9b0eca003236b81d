"""A server of a bundle's backup alone, for proxies: it answers at once, or refuses at once."""

import asyncio
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from parity_models.bundle.backup import GatedBackup, Judged, Refusal
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.roles import BACKUP, Source
from parity_models.serving.errors import InvalidRequestError, NoStandInError, NotFoundError
from parity_models.serving.inference import Call, Inference, InferRequest, request_of
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.options import ServeOptions
from parity_models.serving.protocol import read_json
from parity_models.serving.rest import JSON, Request, Response, encoded
from parity_models.tensors.signature import Signature
from parity_models.tensors.texts import BYTES, as_texts
from parity_models.trust.evidence import WRITE_EVERY

_WHY = {
    Refusal.UNLIKE: "an input is unlike those that the stand-in learned from",
    Refusal.UNSURE: "the stand-in is too unsure of a row",
    Refusal.CLOSED: "the stand-in no longer agrees with the model",
    Refusal.FAILED: "the stand-in failed",
}


class StandInOnly(ServedVersion):
    """A bundle's backup, which answers by itself, in as many threads as the options' workers.

    There is no queue: a request is refused if all threads are busy, or if the backup may not answer
    each of its rows. It sees no model, so it compares nothing: it reads what servers and clients of
    the same bundle have learned, from their files.

    Raises:
        UserError: The bundle has no backup.

    """

    differ = None
    quarantined: Collection[str] = ()

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        evidence = bundle.gates.evidence(options.state, keep=False)
        self._backup = backup = GatedBackup(bundle, options.agreement, evidence=evidence)
        model = ServedModel.of(
            bundle,
            options.name,
            {Source.BACKUP: backup.gate},
            max_rows=options.max_queue,
            stood_in=frozenset({backup.output.name}),
        )
        super().__init__(self, model, Metrics(bundle.digest))
        self.title = f"the stand-ins of {model.name}"
        self.description = f"threads: {options.workers}"
        self.notes = tuple(backup.notes)
        self._read_at = time.monotonic()
        self._threads = ThreadPoolExecutor(options.workers, "parm-backup")
        self._most, self._answering = options.workers, set[asyncio.Future[Any]]()
        self.ready = True
        """True until the server stops."""
        self._stopped = False

    def check_admission(self, rows: int, timeout: float | None = None) -> None:
        """Raise NoStandInError if all threads are busy, or it is stopped."""
        if self._stopped:
            raise NoStandInError("the server is stopping", "stopping")
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
            self.metrics.refused_answers.labels(BACKUP, answer).inc(len(rows))
            raise NoStandInError(_WHY[answer], answer)
        took = time.monotonic() - began
        for _ in rows:
            self.metrics.latency(Source.BACKUP).observe(took)
        outputs, layout = answer.outputs, self._backup.signature.kind_of(rows[0, ...]).output
        if layout.is_record:  # requests for the other outputs are exact
            outputs = layout.zeros(len(rows))
            outputs[self._backup.output.name] = answer.outputs
        return Result(outputs, [Source.BACKUP] * len(rows), answer.doubts.tolist())

    def retire(self) -> None:
        self.ready = False

    async def drain(self) -> None:
        self._stopped = True
        if self._answering:
            await asyncio.wait(self._answering)

    async def stop(self) -> None:
        """End the threads, once they are idle."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)


CLASSIFY = "/classify"
"""The path of a classifier of texts (http_classify) for vLLM's semantic router."""


class _Texts(Struct):
    """The body of a request for the labels of a text, or of several."""

    inputs: str | list[str]


_TEXTS = msgspec.json.Decoder(_Texts)


class Classify:
    """Answers a text with the scores of all labels, the highest first, and a list of texts with a
    list of such answers. `inference` asks the stand-in of `bundle`; a body has `max_json` bytes."""

    def __init__(self, inference: Inference, bundle: Bundle, max_json: int) -> None:
        self._inference, self._max_json = inference, max_json
        self._labels = bundle.manifest.labels
        self._signature = bundle.manifest.deployed.signature
        only = inference.models.only
        assert only is not None, "it is of one bundle"
        self._model = only.model.name

    async def __call__(self, request: Request) -> Response:
        if not self._labels or [each.datatype for each in self._signature.inputs] != [BYTES]:
            raise NotFoundError(f"{CLASSIFY} needs a stand-in made from a log of texts and labels")
        request.inference = request.is_json = True
        request.max_body = min(request.max_body, self._max_json)
        await request.decompress()
        if len(request.body) > request.max_body:
            raise request.too_large()
        call = _Classification(request, self._labels, self._signature)
        call.model = self._model
        try:
            return await self._inference.answer(call)
        finally:
            call.release()


class _Classification(Call[Response]):
    """A request to classify texts; the model's output has a score for each of the `labels`."""

    def __init__(self, request: Request, labels: Sequence[str], signature: Signature) -> None:
        self.log, self.headers = request.log, request.headers
        self.body, self.budget = request.body, request.budget
        self._labels, self._signature = labels, signature

    def read(self, model: ServedModel) -> InferRequest:
        given = read_json(_TEXTS, memoryview(self.body), "the request").inputs
        self._is_list, (tensor,) = isinstance(given, list), self._signature.inputs
        texts = np.array(given if self._is_list else [given], object)
        try:
            texts = as_texts(texts.reshape(-1, *tensor.shape))
        except ValueError as error:
            raise InvalidRequestError(f"'inputs' {error}") from error
        scores = replace(model, signature=self._signature, labels=None)
        fitting = scores.check_request([(tensor.name, BYTES, texts.shape)])
        return request_of(
            scores, fitting, {tensor.name: texts}, id=None, parameters=None, outputs=()
        )

    async def write(self, asked: InferRequest, result: Result) -> Response:
        answers = []
        for scores in result.outputs.tolist():
            ranked = sorted(zip(scores, self._labels, strict=True), reverse=True)
            said = [{"label": label, "score": score} for score, label in ranked]
            answers.append(msgspec.json.encode(said))
            await self.budget.turn()
        content = b"[%s]" % b",".join(answers) if self._is_list else answers[0]
        return Response(200, content, JSON + encoded(result.headers))
