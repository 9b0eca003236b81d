"""An open-loop load generator: queries go out on a fixed schedule, whatever comes back.

Arrivals are Poisson and drawn beforehand from a seed, and latency counts from the *scheduled*
send time. So a server that stalls is charged for every query that should have been sent
meanwhile (no coordinated omission), and two servers under the same seed get the same queries at
the same times.

`offer_load_from_own_process` runs it where neither the server nor whatever else the caller does
disturbs its clock.
"""

import asyncio
import gc
import selectors
import sys
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.bench.load_result import SOURCES, LoadResult
from parity_models.bench.wire import (
    HEADER_LENGTH,
    MalformedAnswerError,
    ModelMetadata,
    RowWriter,
    read_answer,
    read_model,
)
from parity_models.errors import LoadError
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.tasks import METRICS

STARTED = "started"
LEAD = 0.1
"""Seconds from the last preparation to the first arrival."""
IDLE_CONNECTION = 2.0
"""Seconds after which an idle connection is not used again: servers close theirs after five."""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A load on one served model.

    `data` is an .npz file with `inputs` (n, *input shape), from which queries are drawn, and
    their `labels`; answers are judged by `metric`. `rate` in queries per second. The first
    `warm_up` queries are sent like the `count` that follow, and left out of the result. A query
    fails after `timeout` seconds; one that is due while `max_in_flight` are under way is not
    sent and counts as an error.
    """

    url: str
    model: str = "model"
    data: str
    metric: str = "top-1"
    rate: Annotated[float, Meta(gt=0, le=1e6)]
    count: Annotated[int, Meta(ge=1, le=10_000_000)]
    warm_up: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    seed: int = 0
    timeout: Annotated[float, Meta(gt=0, le=600)] = 10.0
    max_in_flight: Annotated[int, Meta(ge=1, le=512)] = 256


async def offer_load(spec: LoadSpec, started: Callable[[], None]) -> LoadResult:
    """Offer the load and return what became of every counted query.

    `started` is called when the first counted query is due. Raises LoadError if the server or
    its model cannot be found or the data do not fit.
    """
    inputs, labels = _read_data(Path(spec.data))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION)
    timeout = aiohttp.ClientTimeout(total=spec.timeout)
    async with aiohttp.ClientSession(spec.url, connector=connector, timeout=timeout) as session:
        load = _Load(spec, inputs, labels, session, await _find_model(session, spec))
        # Nothing made so far will be garbage, so do not search it for some during the load.
        gc.freeze()
        await load.run(started)
    return load.result()


class _Load:
    """A load under way: what is known of each query, in order of arrival."""

    def __init__(
        self,
        spec: LoadSpec,
        inputs: NDArray[Any],
        labels: NDArray[Any],
        session: aiohttp.ClientSession,
        model: ModelMetadata,
    ) -> None:
        self._spec = spec
        self._inputs, self._labels = inputs, labels
        self._session = session
        self._model = model
        self._writer = RowWriter(model)
        self._writer.body(inputs[0])
        self._total = spec.warm_up + spec.count
        self._due = poisson_arrivals(spec.rate, self._total, spec.seed)
        self._rows = np.random.default_rng((spec.seed, 1)).integers(len(inputs), size=self._total)
        self._send_delay, self._latency, self._score = np.full((3, self._total), np.nan)
        self._outcome = [""] * self._total

    async def run(self, started: Callable[[], None]) -> None:
        """Send every query at its time, and wait for the last answer."""
        loop = asyncio.get_running_loop()
        start = loop.time() + LEAD
        under_way: set[asyncio.Task[None]] = set()
        with tqdm(total=self._total, desc="queries", unit="", mininterval=0.5) as progress:
            for query in range(self._total):
                due = start + self._due[query]
                await asyncio.sleep(due - loop.time())
                if query == self._spec.warm_up:
                    started()
                if len(under_way) >= self._spec.max_in_flight:
                    self._outcome[query] = f"not sent, {self._spec.max_in_flight} in flight"
                    continue
                task = asyncio.create_task(self._one(query, due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                progress.update(query + 1 - progress.n)
            if under_way:
                await asyncio.wait(under_way)

    async def _one(self, query: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        self._send_delay[query] = loop.time() - due
        self._outcome[query] = await self._ask(query)
        self._latency[query] = loop.time() - due

    async def _ask(self, query: int) -> str:
        """The source of the query's answer, or the kind of error it ended in."""
        row = self._rows[query]
        body = self._writer.body(self._inputs[row])
        try:
            async with self._session.post(
                self._model.path, data=body, headers=self._writer.headers
            ) as response:
                content = await response.read()
                if response.status != HTTPStatus.OK:
                    return f"HTTP {response.status}"
            answer = read_answer(self._model, content, response.headers.get(HEADER_LENGTH))
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientError as error:
            return f"connection: {type(error).__name__}"
        except MalformedAnswerError:
            return "malformed answer"
        metric = METRICS[self._spec.metric]
        self._score[query] = metric(answer.output[np.newaxis], self._labels[row : row + 1])
        return answer.source

    def result(self) -> LoadResult:
        """What became of the queries after the warm-up."""
        counted = slice(self._spec.warm_up, None)
        due, outcome = self._due[counted], self._outcome[counted]
        kinds = [*SOURCES, *sorted(set(outcome) - set(SOURCES))]
        codes = {kind: code for code, kind in enumerate(kinds)}
        return LoadResult(
            scheduled=due - due[0],
            send_delay=self._send_delay[counted],
            latency=self._latency[counted],
            score=self._score[counted],
            outcome=np.array([codes[kind] for kind in outcome], np.int16),
            outcomes=np.array(kinds),
        )


async def _find_model(session: aiohttp.ClientSession, spec: LoadSpec) -> ModelMetadata:
    try:
        async with session.get(f"/v2/models/{spec.model}") as response:
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LoadError(f"no server answers at {spec.url}: {error}") from error
    if response.status != HTTPStatus.OK:
        raise LoadError(f"{spec.url} has no model {spec.model!r} (HTTP {response.status})")
    return read_model(spec.model, content)


def _read_data(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, labels = arrays["inputs"], arrays["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{path} is no .npz file with inputs and labels: {error}") from error
    if not 0 < len(inputs) == len(labels):
        raise LoadError(f"{path} has {len(inputs)} inputs and {len(labels)} labels")
    return inputs, labels


async def offer_load_from_own_process(
    spec: LoadSpec, started: Callable[[], None], prefix: Sequence[str] = ()
) -> LoadResult:
    """Like `offer_load`, in a new process, which is gone when this returns or raises.

    Its command begins with `prefix`.
    """
    with TemporaryDirectory(prefix="parm-load-") as folder:
        spec_path, result_path = Path(folder, "spec.json"), Path(folder, "result.npz")
        spec_path.write_bytes(msgspec.json.encode(spec))
        process = await asyncio.create_subprocess_exec(
            *prefix, sys.executable, "-m", __name__, spec_path, result_path,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            message = (await process.stdout.readline()).decode().strip()
            if message == STARTED:
                started()
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise LoadError(
                message if message != STARTED else f"the load stopped with exit code {code}"
            )
        return LoadResult.load(result_path)


def main(arguments: Sequence[str]) -> int:
    """SPEC.json RESULT.npz: offer the load of the one, write the other."""
    spec_path, result_path = arguments
    spec = msgspec.json.decode(Path(spec_path).read_bytes(), type=LoadSpec)
    try:
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            result = runner.run(offer_load(spec, partial(_tell, STARTED)))
        result.save(Path(result_path))
    except LoadError as error:
        _tell(str(error))
        return 2
    return 0


def _tell(message: str) -> None:
    """To offer_load_from_own_process: STARTED, or why not."""
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def _precise_loop() -> asyncio.AbstractEventLoop:
    # epoll rounds waits up to whole milliseconds; select keeps their microseconds.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
