"""Background transfers, for real: machines in network namespaces behind shaped links.

    frontend ────── switch ──┬── shaped ── machine 0
                             ├── shaped ── machine 1
                             └── ...

All of it, the switch too, is in namespaces of its own. Nothing outside can reach it, and it is
gone when they are. Addresses are of the block for benchmarks (RFC 2544). It needs root, and the
tools of Debian's package iproute2.
"""

import ctypes
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from parity_models_lab.contention import ContentionError
from parity_models_lab.contention.transfers import QUEUE, RATE, UP, Leg, legs

NAMES = Path("/run/netns")
PREFIX = "parm-"
"""Names go on with the process that made them, so that leftovers are found once it has ended."""

GRACE = 5.0
"""Seconds that processes in a namespace have to end before they are killed."""

FRONTEND_ADDRESS = "198.18.0.1"
CONNECT_TIMEOUT = 2.0

BURST = 70_000
"""Bytes that a link lets through at once after a rest: the largest parcel that TCP hands over,
with headers. Were it less, the kernel would cut parcels up, at ten times the computing time."""

CHUNK, WAKE = 1 << 20, 1 << 18
"""Bytes that are handed over at once at most, and that are there before a receiver is woken."""

POLL = 0.1
"""Seconds between two looks at the clock of a transfer that does not move."""

RESET = struct.pack("ii", 1, 0)
"""A struct linger: on closing, discard data that is not yet sent or read."""

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def check_privileges() -> None:
    """Raise ContentionError if namespaces cannot be made here."""
    if os.geteuid() != 0:
        raise ContentionError(
            "contention on the network is made in network namespaces, which takes root; run this "
            "as root, or leave the network out"
        )
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise ContentionError(f"there is no command {tool}; install the package iproute2")


def own_prefix() -> str:
    """Return the prefix of the names that this process gives."""
    return f"{PREFIX}{os.getpid()}-"


@dataclass(frozen=True)
class Star:
    """Names of the namespaces around the switch."""

    frontend: str
    machines: tuple[str, ...]

    def connect(self, leg: Leg) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new TCP connection between machines. Raises OSError if it fails."""
        with _inside(self.machines[leg.target]):
            listener = socket.create_server((machine_address(leg.target), 0))
        with listener, ExitStack() as stack:
            listener.settimeout(CONNECT_TIMEOUT)
            with _inside(self.machines[leg.source]):
                sender = stack.enter_context(socket.socket())
            sender.settimeout(CONNECT_TIMEOUT)
            sender.connect(listener.getsockname())
            receiver, _ = listener.accept()
            stack.pop_all()
        return sender, receiver


def enter(namespace: str) -> tuple[str, ...]:
    """Return what a command begins with that runs in a namespace."""
    return ("ip", "netns", "exec", namespace)


def machine_address(machine: int) -> str:
    """Return the address of a machine of the star."""
    return f"198.18.{1 + machine // 250}.{1 + machine % 250}"


@contextmanager
def star(machines: int) -> Iterator[Star]:
    """Make such a network while the context lasts. Raises ContentionError if it cannot be made.

    The leftovers of processes that were killed are removed first.
    """
    check_privileges()
    remove_abandoned()
    prefix = own_prefix()
    made = Star(f"{prefix}frontend", tuple(f"{prefix}{i}" for i in range(machines)))
    everyone = (f"{prefix}switch", made.frontend, *made.machines)
    try:
        configure("ip", [f"netns add {name}" for name in everyone])
        _connect_all(f"{prefix}switch", made)
        yield made
    finally:
        remove(everyone)


def _connect_all(switch: str, made: Star) -> None:
    queue = f"burst {BURST}b limit {QUEUE}b"
    addresses = [FRONTEND_ADDRESS, *map(machine_address, range(len(made.machines)))]
    configure("ip", ["link add name bridge0 type bridge", "link set dev bridge0 up"], switch)
    for number, name in enumerate((made.frontend, *made.machines)):
        port, address = f"port-{number}", addresses[number]
        ends = [
            f"link add name {port} type veth peer name eth0 netns {name}",
            f"link set dev {port} addrgenmode none",
            f"link set dev {port} master bridge0 up",
        ]
        configure("ip", ends, switch)
        commands = [
            "link set dev lo up",
            "link set dev eth0 addrgenmode none",
            f"address add {address}/16 dev eth0",
            "link set dev eth0 up",
            # Kernels differ in their default; this one fills queues, as most traffic does.
            f"route replace 198.18.0.0/16 dev eth0 src {address} congctl cubic",
        ]
        configure("ip", commands, name)
        if number:
            for where, device, faster in ((switch, port, 1), (name, "eth0", UP)):
                shape = f"root tbf rate {faster * RATE:.0f}bit {queue}"
                configure("tc", [f"qdisc add dev {device} {shape}"], where)


def configure(tool: str, commands: Sequence[str], namespace: str | None = None) -> None:
    """Let `ip` or `tc` execute commands. Raises ContentionError with its message if it fails."""
    arguments = [tool, *(("-n", namespace) if namespace else ()), "-batch", "-"]
    done = subprocess.run(arguments, input="\n".join(commands), capture_output=True, text=True)
    if done.returncode:
        raise ContentionError(f"{tool} cannot set the network up: {done.stderr.strip()}")


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Move this thread into a namespace; sockets opened meanwhile stay there."""
    with open("/proc/thread-self/ns/net") as home, open(NAMES / namespace) as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    # os.setns is there from Python 3.12 on only.
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def remove_abandoned() -> None:
    """Remove the namespaces whose maker has ended."""
    abandoned = []
    for path in NAMES.glob(f"{PREFIX}*"):
        with suppress(ValueError, psutil.NoSuchProcess):
            maker = psutil.Process(int(path.name.split("-")[1]))
            if maker.status() != psutil.STATUS_ZOMBIE:
                continue
        abandoned.append(path.name)
    remove(abandoned)


def remove(names: Sequence[str]) -> None:
    """Remove namespaces with all interfaces in them, once no process is left in them."""
    end = time.monotonic() + GRACE
    while processes := processes_in(names):
        if time.monotonic() > end:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in names:
        try:
            configure("ip", [f"netns del {name}"])
        except ContentionError:
            # Another process may remove the same leftovers at the same time.
            if (NAMES / name).exists():
                raise


def processes_in(names: Sequence[str]) -> list[int]:
    """Return the ids of the processes in these namespaces."""
    inodes = {(NAMES / name).stat().st_ino for name in names if (NAMES / name).exists()}
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "ns/net").stat().st_ino in inodes:
                processes.append(int(path.name))
    return processes


# Shuffles


@contextmanager
def shuffling(shuffles: int, machines: Star, seed: int) -> Iterator[None]:
    """Run background transfers from now on, so many at all times.

    Each lane is a thread that runs one transfer after the other. A transfer has its links for as
    long as its bytes take at the links' rate and is then cut off, whether or not it got through:
    so where two share a link, both are slowed, but neither moves those that follow.
    """
    stop, start = Event(), time.monotonic()
    courses = [legs(len(machines.machines), seed, lane) for lane in range(shuffles)]
    lanes = [Thread(target=_run_lane, args=(each, machines, start, stop)) for each in courses]
    for lane in lanes:
        lane.start()
    try:
        yield
    finally:
        stop.set()
        for lane in lanes:
            lane.join()


def _run_lane(course: Iterator[Leg], machines: Star, start: float, stop: Event) -> None:
    with open(os.memfd_create("shuffle"), "wb") as zeros:
        zeros.truncate(CHUNK)
        for leg in course:
            if stop.wait(max(0.0, start + leg.start - time.monotonic())):
                return
            with suppress(OSError):  # not even a connection got through: the link is that busy
                sender, receiver = machines.connect(leg)
                with sender, receiver:
                    _transfer(zeros.fileno(), sender, receiver, start + leg.end, stop)


def _transfer(
    zeros: int, sender: socket.socket, receiver: socket.socket, end: float, stop: Event
) -> None:
    """Send the file `zeros`, over and over, until `end` of time.monotonic(), or `stop` is set."""
    buffer = bytearray(CHUNK)
    sender.setblocking(False)
    receiver.setblocking(False)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WAKE)
    while (left := end - time.monotonic()) > 0 and not stop.is_set():
        readable, writable, _ = select.select([receiver], [sender], [], min(POLL, left))
        with suppress(BlockingIOError):
            if readable:  # MSG_TRUNC: TCP drops the bytes instead of copying them (tcp(7))
                receiver.recv_into(buffer, CHUNK, socket.MSG_TRUNC)
            if writable:
                os.sendfile(sender.fileno(), zeros, 0, CHUNK)
