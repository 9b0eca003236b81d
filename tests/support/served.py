"""A small bundle, and `parm serve` as a process of its own, for tests."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from commands import parm
from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.models.bundle import (
    Bundle,
    NewModel,
    open_bundle,
    with_measured,
    write_bundle,
)
from parity_models.models.envelope import Envelope
from parity_models.models.gate import Calibration, GateLevel

INPUTS, OUTPUTS = 784, 10
WEIGHTS = np.random.default_rng(7).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
WEIGHTS /= INPUTS
SUM = CodeSpec("sum", "subtraction", 2)
MULTIPLES = {2: "double", 3: "triple"}
"""How many times as much each backup predicts, and what it is called."""


def write_linear_bundle(
    folder: Path,
    *,
    coded: bool = True,
    backed: int = 0,
    code: CodeSpec = SUM,
    envelope: Envelope | None = None,
) -> Path:
    """A bundle of a linear model, which is its own exact parity model under sum + subtraction.

    So it is under another linear `code`. The first of its `backed` backups predicts twice as much,
    the second three times.
    """
    onnx = folder / "linear.onnx"
    linear_model(onnx, (INPUTS,), (OUTPUTS,), WEIGHTS)
    model = NewModel(onnx, "linear")
    for times, name in MULTIPLES.items():
        linear_model(folder / f"{name}.onnx", (INPUTS,), (OUTPUTS,), times * WEIGHTS)
    return write_bundle(
        folder / "bundle",
        deployed=model,
        parity=[model] if coded else [],
        backups=[NewModel(folder / f"{name}.onnx", name) for name in MULTIPLES.values()][:backed],
        code=code if coded else None,
        envelope=envelope,
    ).path


def gated_bundle(folder: Path, threshold: float, level: float = 0.95) -> Bundle:
    """A bundle of the linear model with a backup that predicts twice as much; its gate lets answers
    of this confidence pass."""
    gate = GateLevel(level, threshold, coverage=0.5, agreement=0.97)
    calibration = Calibration("classes", 0.0, "scores", queries=1000, risk=0.05, levels=(gate,))
    bundle = open_bundle(write_linear_bundle(folder, coded=False, backed=1))
    return with_measured(bundle, calibration={"backup": calibration})


def queries(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, INPUTS)).astype(np.float32)


def predictions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows @ WEIGHTS


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
        self._tokens = arguments[arguments.index("--tokens") + 1] if "--tokens" in arguments else ""
        self._signalled = False

    def workers(self) -> list[int]:
        """The process ids of the workers that are up."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        # Reading all authorities' certificates takes longer than reading the metrics.
        text = httpx.get(self.metrics_url, verify=False).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def signal(self, number: signal.Signals) -> None:
        self._signalled = True
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once all output has been read."""
        self.process.communicate(timeout=120)
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        headers = {}
        if self._tokens:
            lines = Path(self._tokens).read_text().splitlines()
            token = next(each for each in lines if each and not each.startswith(("#", "sha256:")))
            headers["Authorization"] = f"Bearer {token}"
        answers = []

        def scraped() -> bool:
            with suppress(httpx.HTTPError), httpx.Client(verify=False, headers=headers) as client:
                answers.append(client.get(self.metrics_url))
            return bool(answers) and answers[-1].status_code == 200

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
