"""parm-lab rollout: new versions take each other's place under load, while instances are killed.

Three phases of the same load on the same server: nothing happens; instances are killed; versions
are rolled out, with a kill in each rollout. Instances take a time that is drawn, and no core, as if
they had accelerators. Version 2 predicts twice what version 1 does, so that every row of an answer
tells who made it.
"""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ServingError
from parity_models_lab.processes import command_line, descendants, send
from parity_models_lab.reliability.chaos_result import Claim
from parity_models_lab.reliability.http_client import BrokenError, HttpAnswer, HttpClients
from parity_models_lab.reliability.known_model import MODEL, KnownModel, write_versions
from parity_models_lab.reliability.serve_process import ServeProcess
from parity_models_lab.reliability.servers import SIGMA, WORKER
from parity_models_lab.reliability.table_result import TableResult
from parity_models_lab.reliability.traffic import error_text

INSTANCES, OF_REDUNDANCY = 8, 2
"""Of a version, and how many of them there would not be without redundancy."""
SERVICE = 0.025
"""Median seconds that an instance takes for a unit."""
ROWS = 2
"""Rows of a request: more than one, so that versions could be mixed in it."""
PAUSE = 2.0
"""Seconds of load before anything counts, and between two events: queues are to be as before."""
AFTER_KILL = 1.5
"""Seconds that belong to a kill."""
MOST = 1.5
"""What p99.9 may be during rollouts, as a multiple of what it is before."""
DEADLINE = 10.0
TRIES = 3
"""Loads of a version that may be asked for: one kill refuses one at most."""


class PhaseResult(NamedTuple):
    """What became of the requests of a phase, by their ends; latencies in ms."""

    name: str
    requests: int
    ends: dict[str, int]
    p50_ms: float
    p99_ms: float
    p999_ms: float


@dataclass
class _Phases:
    """Latencies and ends of requests, by the phase in which they were due."""

    now: str | None = None
    latencies: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, Counter[str]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.now = name
        try:
            yield
        finally:
            self.now = None

    def ended(self, phase: str, seconds: float, end: str) -> None:
        self.latencies.setdefault(phase, []).append(seconds)
        self.ends.setdefault(phase, Counter())[end] += 1

    def all(self) -> tuple[PhaseResult, ...]:
        found = []
        for name, seconds in self.latencies.items():
            p50, p99, p999 = np.percentile(np.array(seconds) * 1e3, [50, 99, 99.9])
            ends = dict(sorted(self.ends[name].items()))
            found.append(PhaseResult(name, len(seconds), ends, float(p50), float(p99), float(p999)))
        return tuple(found)


async def run_rollout(
    *,
    folder: Path,
    seed: int,
    load: float,
    seconds: float,
    rollouts: int,
    say: Callable[[str], None],
    instances: int = INSTANCES,
    pause: float = PAUSE,
) -> TableResult:
    """Offer `load` for `seconds` in peace, then through as many kills and `rollouts`.

    Raises ServingError for a server that does not start.
    """
    repository = folder / "repository"
    model = write_versions(repository, seed)
    faults = {"service_time": {"type": "lognormal", "median": SERVICE, "sigma": SIGMA}}
    server = ServeProcess(
        [
            *("--repository", str(repository), "--port", "0", "--deadline", str(DEADLINE)),
            *("--instances", str(instances - OF_REDUNDANCY)),
            *("--parity-instances", str(OF_REDUNDANCY)),
            *("--faults", json.dumps(faults)),
        ],
        folder / "server.log",
    )
    await server.start()
    rate = load * instances / (SERVICE * exp(SIGMA**2 / 2)) / ROWS
    try:
        http = HttpClients(server.url)
        run = _Run(server, http, model, Random(f"{seed}/rollout"), say)
        await run.all(rate, seconds, rollouts, pause)
        http.close()
    finally:
        await server.stop()
    phases = run.phases.all()
    took = ", ".join(f"{seconds:.1f}" for seconds in run.rollout_seconds)
    return TableResult(
        title="Rollouts of a new version under load",
        note=(
            f"{load:.0%} of what the {instances} instances of a version can do, {rate:.0f} "
            f"requests a second of {ROWS} rows, seed {seed}; the rollouts took {took} s"
        ),
        columns=("phase", "requests", "ended", "p50 (ms)", "p99 (ms)", "p99.9 (ms)"),
        rows=tuple(map(_row, phases)),
        claims=rollout_claims(phases),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
    )


class _Run:
    def __init__(
        self,
        server: ServeProcess,
        http: HttpClients,
        model: KnownModel,
        rng: Random,
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._http = http
        self._model = model
        self._rng = rng
        self._say = say
        self._asking: set[asyncio.Task[None]] = set()
        self.phases = _Phases()
        self.rollout_seconds: list[float] = []

    async def all(self, rate: float, seconds: float, rollouts: int, pause: float) -> None:
        over = asyncio.Event()
        offering = asyncio.create_task(self._offer(rate, over))
        await self._roll_out("1")
        await asyncio.sleep(pause)
        self._say(f"{rate:.0f} requests a second, of {ROWS} rows; in peace")
        with self.phases.phase("before"):
            await asyncio.sleep(seconds)
        for _ in range(rollouts):
            with self.phases.phase("kills"):
                self._kill()
                await asyncio.sleep(AFTER_KILL)
            await asyncio.sleep(pause)
        for number in range(rollouts):
            version = "2" if number % 2 == 0 else "1"
            with self.phases.phase("rollouts"):
                began = time.monotonic()
                killing = asyncio.get_running_loop().call_later(
                    self._rng.uniform(0.0, 2.0), self._kill
                )
                await self._roll_out(version)
                self.rollout_seconds.append(time.monotonic() - began)
                await asyncio.sleep(max(0.0, killing.when() - time.monotonic()) + AFTER_KILL)
            self._say(f"version {version} after {self.rollout_seconds[-1]:.1f} s")
            await asyncio.sleep(pause)
        over.set()
        await offering
        while self._asking:
            await asyncio.wait(self._asking)

    def _kill(self) -> None:
        """kill -9 of an instance, of whichever version."""
        workers = [pid for pid in descendants(self._server.pid) if WORKER in command_line(pid)]
        send(self._rng.choice(workers), signal.SIGKILL)

    async def _roll_out(self, version: str) -> None:
        """Returns when this version alone runs.

        A kill that hits an instance while it starts has the load refused; it is asked for again.
        """
        body = json.dumps({"parameters": {"version": version}}).encode()
        for _ in range(TRIES):
            answer = await self._post(f"/v2/repository/models/{MODEL}/load", body)
            if answer.status == 200:
                break
        else:
            raise ServingError(f"version {version} was not loaded: {answer.body.decode()}")
        while True:
            index = json.loads((await self._post("/v2/repository/index", b"{}")).body)
            states = {each["version"]: each["state"] for each in index}
            if states.pop(version) == "READY" and set(states.values()) <= {"UNAVAILABLE"}:
                return
            await asyncio.sleep(0.05)

    async def _post(self, path: str, body: bytes) -> HttpAnswer:
        head = f"POST {path} HTTP/1.1\r\nHost: {self._http.authority}\r\n"
        return await self._http.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    # The load

    async def _offer(self, rate: float, over: asyncio.Event) -> None:
        """Open-loop Poisson arrivals; latency counts from when a request is due."""
        due = time.monotonic()
        while not over.is_set():
            due += self._rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asking = asyncio.create_task(self._ask(due, self.phases.now))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def _ask(self, due: float, phase: str | None) -> None:
        first = self._rng.randrange(len(self._model.rows) - ROWS)
        rows = self._model.rows[first : first + ROWS]
        tensor = {
            "name": "input",
            "datatype": "FP32",
            "shape": rows.shape,
            "data": rows.ravel().tolist(),
        }
        try:
            body = msgspec.json.encode({"inputs": [tensor]})
            answer = await self._post(f"/v2/models/{MODEL}/infer", body)
            end = self._end(rows, answer)
        except BrokenError as error:
            end = f"failed: {error}"
        if phase is not None:
            self.phases.ended(phase, time.monotonic() - due, end)

    def _end(self, rows: NDArray[np.float32], answer: HttpAnswer) -> str:
        """The version that has made the answer, all of it, or what is wrong with it."""
        if answer.status != 200:
            return f"failed: {answer.status}, {error_text(answer)[:60]}"
        found = json.loads(answer.body)
        outputs = np.array(found["outputs"][0]["data"], np.float32).reshape(len(rows), -1)
        made_by = [self._made_by(row, output) for row, output in zip(rows, outputs, strict=True)]
        if len(set(made_by)) > 1:
            return "mixed: " + " and ".join(made_by)
        version: str = found["model_version"]
        return version if made_by[0] == version else f"wrong: {made_by[0]} as {version}"

    def _made_by(self, row: NDArray[np.float32], output: NDArray[np.float32]) -> str:
        for version, times in (("1", 1.0), ("2", 2.0)):
            if self._model.right(np.float32(times) * row[np.newaxis], output[np.newaxis])[0]:
                return version
        return "neither"


def _row(phase: PhaseResult) -> tuple[str, ...]:
    ends = ", ".join(f"{end}: {count:,}" for end, count in phase.ends.items())
    times = (phase.p50_ms, phase.p99_ms, phase.p999_ms)
    return phase.name, f"{phase.requests:,}", ends, *(f"{each:.0f}" for each in times)


def rollout_claims(phases: Sequence[PhaseResult]) -> tuple[Claim, ...]:
    """What must hold of the phases, of which one is called before and one rollouts."""
    by_name = {phase.name: phase for phase in phases}
    before, during = by_name["before"], by_name["rollouts"]
    failed, mixed = (
        sum(count for each in phases for end, count in each.ends.items() if end.startswith(kinds))
        for kinds in (("failed",), ("mixed", "wrong"))
    )
    of = sum(each.requests for each in phases)
    ratio = during.p999_ms / before.p999_ms
    return (
        Claim("no request fails", f"{failed:,} of {of:,}", failed == 0),
        Claim("every answer is one version's, which it names", f"{mixed:,} are not", mixed == 0),
        Claim(
            f"p99.9 during rollouts is at most {MOST:g} times what it is before",
            f"{during.p999_ms:.0f} ms to {before.p999_ms:.0f} ms: {ratio:.2f}",
            ratio <= MOST,
        ),
    )
