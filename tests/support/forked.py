"""`parm` as a process of its own that need not import anything: forked from one that has.

Imports are two thirds of a server's start, and of most commands. One process for all tests of
this one has done them, and nothing else; each `parm` is a copy of it that gets its arguments,
variables, folder and streams, and then runs `main` to its end, as a process that was just started.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

SUPPORT = Path(__file__).parent
IMPORTED = (
    "parity_models.cli.load",
    "parity_models.cli.serve",
    "parity_models.serving.certificate",
    "parity_models.serving.grpc.grpc_server",
    "parity_models.serving.remote.clients",
    "parity_models.serving.remote.grpc",
    "parity_models.serving.repository",
    # Typer imports it when it reads a command line.
    "pydantic.fields",
    "pydantic.type_adapter",
    "pydantic.types",
)
MAX_ORDER = 2**20


class Forked:
    """`parm` with these arguments; what tests use of a subprocess.Popen, with streams of text.

    Its standard input is empty. The streams are pipes if they are to be `read`, else those of this
    process.
    """

    def __init__(
        self,
        *arguments: str,
        read: tuple[str, ...] = ("stdout",),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        written = [1, 2]
        for number, name in enumerate(("stdout", "stderr")):
            if name in read:
                end, written[number] = os.pipe()
                setattr(self, name, os.fdopen(end))
        order = {
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ if environment is None else environment),
        }
        try:
            self.pid = _source(os.getpid()).ask(order, written)
        finally:
            for each in set(written) - {1, 2}:
                os.close(each)
        self._end = os.pidfd_open(self.pid)
        self._noticing = Lock()

    def poll(self) -> int | None:
        return self.returncode if not self._ended(0.0) else self._status()

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired("parm", timeout or 0.0)
        return self._status()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it still writes to the streams that are read, once it has ended."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = {self.stdout: "", self.stderr: ""}
        reading = [
            Thread(target=lambda stream=stream: texts.update({stream: stream.read()}), daemon=True)
            for stream in texts
            if stream is not None and not stream.closed
        ]
        for each in reading:
            each.start()
        for each in reading:
            each.join(None if end is None else max(0.0, end - time.monotonic()))
            if each.is_alive():
                raise subprocess.TimeoutExpired("parm", timeout or 0.0)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> bool:
        if self.returncode is not None:
            return True
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(None if timeout is None else 1000 * timeout))

    def _status(self) -> int:
        with self._noticing:
            if self.returncode is None:
                self.returncode = _source(os.getpid()).ask({"ended": self.pid})
                os.close(self._end)
        return self.returncode


def run(
    *arguments: str, environment: dict[str, str] | None = None, timeout: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """`parm` with these arguments, once it has ended, and what it wrote."""
    process = Forked(*arguments, read=("stdout", "stderr"), environment=environment)
    try:
        stdout, stderr = process.communicate(timeout)
    finally:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    return subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)


class _Source:
    """The process that has done the imports, which ends with this one."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking = Lock()
        program = (
            f"import sys; sys.path.append({str(SUPPORT)!r}); from forked import await_order; "
            f"await_order({theirs.fileno()}); sys.path.remove({str(SUPPORT)!r}); "
            "from parity_models.cli.main import main; main()"
        )
        # One thread: a fork takes no other along. In a session of its own, out of reach of Ctrl-C.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self._end)

    def ask(self, order: dict[str, Any], streams: list[int] | None = None) -> int:
        sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", streams))] if streams else []
        with self._asking:
            self._orders.sendmsg([json.dumps(order).encode()], sent)
            answer = self._orders.recv(64)
        assert answer, "the process with the imports has ended"
        return int(answer)

    def _end(self) -> None:
        self._orders.close()
        with suppress(ChildProcessError):  # it is of the process that this one is forked from
            self._process.wait()


@cache
def _source(process: int) -> _Source:
    """This process's; one that is forked from it has its own."""
    return _Source()


def await_order(descriptor: int) -> None:
    """Import, and fork whenever there is an order; returns in each process that is forked."""
    import gc
    from importlib import import_module

    for module in IMPORTED:
        import_module(module)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads have been started by imports"
    gc.freeze()  # as a server does: what stays is not looked at again, nor copied for that
    orders = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    while True:
        content, streams, _, _ = socket.recv_fds(orders, MAX_ORDER, 2)
        if not content:
            os._exit(0)
        order = json.loads(content)
        if ended := order.get("ended"):
            answer = os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])
        else:
            answer = os.fork()
            if not answer:
                break
        orders.send(str(answer).encode())
        for each in streams:
            os.close(each)
    orders.close()
    for number, each in enumerate(streams, start=1):
        os.dup2(each, number)
        os.close(each)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = order["arguments"]
