"""A small bundle, `parm serve` as a process of its own, and its clients, for tests."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from commands import parm
from linear_bundles import linear_bundle
from parity_models import ServeOptions, Server
from parity_models.bundle.bundle import Bundle, open_bundle, with_measured
from parity_models.codes import CodeSpec
from parity_models.trust.envelope import Envelope
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import Calibration, GateLevel

INPUTS, OUTPUTS = 784, 10
WEIGHTS = np.random.default_rng(7).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
WEIGHTS /= INPUTS
SUM = CodeSpec("sum", "subtraction", 2)


def write_linear_bundle(
    folder: Path,
    *,
    coded: bool = True,
    backed: bool = False,
    code: CodeSpec = SUM,
    envelope: Envelope | None = None,
) -> Path:
    """A bundle of a linear model, which is its own exact parity model under sum + subtraction.

    So it is under another linear `code`. A backup, if it is `backed`, predicts twice as much.
    """
    return linear_bundle(
        folder,
        WEIGHTS,
        [WEIGHTS] if coded else [],
        code if coded else None,
        backup=2 * WEIGHTS if backed else None,
        envelope=envelope,
    ).path


def gated_bundle(folder: Path, threshold: float, level: float = 0.95) -> Bundle:
    """A bundle of the linear model with a backup that predicts twice as much; its gate lets answers
    of this confidence pass."""
    gate = GateLevel(level, threshold, coverage=0.5, agreement=0.97)
    curve = DoubtCurve((0.0,), (0.03,), 1000, ((200, 6, 6.0),))
    calibration = Calibration("classes", 0.0, "scores", 1000, 0.05, (gate,), curve=curve)
    bundle = open_bundle(write_linear_bundle(folder, coded=False, backed=True))
    return with_measured(bundle, calibration={"backup": calibration})


def queries(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, INPUTS)).astype(np.float32)


def predictions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows @ WEIGHTS


INFER = "/v2/models/model/infer"


def infer_message(rows: NDArray[Any], **parameters: Any) -> dict[str, Any]:
    """A request for the predictions of these rows, as JSON."""
    shape, data = list(rows.shape), rows.tolist()
    tensor = {"name": "input", "shape": shape, "datatype": "FP32", "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def infer(
    client: httpx.Client, rows: NDArray[np.float32], url: str = "", **parameters: Any
) -> httpx.Response:
    """Ask for predictions; if there is an answer, it is the right one of each row's source."""
    response = client.post(f"{url}{INFER}", json=infer_message(rows, **parameters))
    if response.is_success:
        (output,) = response.json()["outputs"]
        found = np.reshape(output["data"], output["shape"])
        times = np.array([[2 if each == "backup" else 1] for each in sources_of(response)])
        np.testing.assert_allclose(found, times * predictions(rows), rtol=1e-3, atol=1e-5)
    return response


def sources_of(response: httpx.Response) -> list[str]:
    """The source of each row of an answer."""
    sources: str = response.json()["parameters"]["source"]
    return sources.split(",")


@asynccontextmanager
async def served_here(
    bundle: Bundle, **options: Any
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server in this process, and a client of it."""
    async with (
        Server(bundle, ServeOptions(port=0, **options)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        yield server, client


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels; `url` is that of the metrics."""
    # Reading all authorities' certificates takes longer than reading the metrics.
    text = httpx.get(url, verify=False).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


class Clients:
    """Clients that ask again and again meanwhile, each over a connection of its own.

    `ask` is called with that, and the number of the request; what it returns is kept in `answers`,
    and the text of its error in `failures`, of which there may be none unless they `may_fail`.
    """

    def __init__(
        self,
        ask: Callable[[httpx.Client, int], object],
        clients: int = 4,
        *,
        pause: float = 0.01,
        may_fail: bool = False,
    ) -> None:
        self.answers: list[Any] = []
        self.failures: list[str] = []
        self._ask, self._pause, self._may_fail = ask, pause, may_fail
        self._numbers = count()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._keep_asking) for _ in range(clients)]

    def more(self, answers: int = 20) -> None:
        """Wait until so many more requests are answered."""
        enough = len(self.answers) + answers
        until(lambda: len(self.answers) >= enough, f"no answers, but {self.failures[:3]}", 240)

    def _keep_asking(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.wait(self._pause):  # and leave cores to those who start
                try:
                    self.answers.append(self._ask(client, next(self._numbers)))
                except Exception as error:
                    self.failures.append(repr(error))

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()
        assert kind or self._may_fail or not self.failures, self.failures[:3]


class ServerProcess:
    """`parm serve` with these arguments, on a free port; killed at the end if still there.

    Unless it has been told to end by then, what its scheduler believed was never to be repaired.
    `before` is called in its process, first of all.
    """

    def __init__(self, *arguments: str, before: Callable[[], object] | None = None) -> None:
        self.process = subprocess.Popen(
            parm("serve", "--port", "0", "--share-groups", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        line = _text(self.process.stdout).readline()
        found = re.search(r"https?://[^\s,]+", line)
        assert found, f"no URL in {line!r}"
        self.url = found[0]
        self.port = int(self.url.rsplit(":", 1)[1])
        grpc = re.search(r"grpcs?://([^\s,]+)", line)
        self.grpc_address = grpc[1] if grpc else ""
        metrics = re.search(r"metrics at (\S+)", line)
        self.metrics_url = metrics[1] if metrics else f"{self.url}/metrics"
        self._signalled = False

    def workers(self) -> list[int]:
        """The process ids of the workers that are up."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return metric(self.metrics_url, name)

    def under_load(self) -> Clients:
        """Return clients that ask for predictions, which have to be right."""
        return Clients(lambda client, n: infer(client, queries(1, n), self.url).raise_for_status())

    def signal(self, number: signal.Signals) -> None:
        self._signalled = True
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once all output has been read."""
        self.process.communicate(timeout=120)
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        try:
            if kind is None and not self._signalled and self.process.poll() is None:
                self._check_repairs()
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                try:
                    self.wait()
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.wait()
            _text(self.process.stdout).close()

    def _check_repairs(self) -> None:
        answers: list[httpx.Response] = []

        def scraped() -> bool:
            with suppress(httpx.HTTPError):
                answers.append(httpx.get(self.metrics_url, verify=False))
            return bool(answers) and answers[-1].status_code in (200, 401)  # 401: tests have none

        until(scraped, "the metrics cannot be read")
        assert not re.findall(r"^parm_repairs_total\S* [^0].*$", answers[-1].text, re.M)


@contextmanager
def nothing_left_of(server: ServerProcess) -> Iterator[None]:
    """Inside, the server ends; afterwards none of the workers that it had is there."""
    workers = server.workers()
    assert workers
    yield
    until(lambda: not any(is_alive(pid) for pid in workers), "workers are still there")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def until(
    condition: Callable[[], bool], otherwise: str, seconds: float = 120.0, pause: float = 0.03
) -> None:
    """Wait for a condition that another process brings about, on a machine that may be busy.

    It is looked at less and less often, up to a `pause` between two looks: each may take processes
    a while in which they could bring it about.
    """
    end, wait = time.monotonic() + seconds, 0.002
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(wait)
        wait = min(1.3 * wait, pause)


def _text(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
