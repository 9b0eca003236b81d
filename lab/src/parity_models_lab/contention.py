"""A network with background transfers: their course, and links that they fill for real.

At all times a fixed number of lanes each run one transfer after the other, out and back between
two distinct machines drawn at random (Kosaian et al., SOSP 2019, section 5.1). A transfer has its
links for as long as its bytes take at the links' rate. So who sends to whom at a time follows from
the seed alone; simulations take it from here, too. Real machines are in network namespaces behind
shaped links.

    frontend ────── switch ──┬── shaped ── machine 0
                             ├── shaped ── machine 1
                             └── ...

All of it, the switch too, is in namespaces of its own. Nothing outside can reach it, and it is
gone when they are. Addresses are of the block for benchmarks (RFC 2544). It needs root, and the
tools of Debian's packages iproute2 and util-linux.
"""

import ctypes
import heapq
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from threading import Event, Thread
from typing import NamedTuple

from parity_models.errors import UserError

RATE = 100e6
"""Bits a second that a machine receives; it sends at UP times that."""

UP = 2
"""So bytes wait at the receiver's end, as where many senders meet."""

QUEUE = 256_000
"""Bytes that wait at either end of a link at most."""

SIZES = 12_800_000, 25_600_000
"""Bytes of a transfer, out and back. As RATE, a tenth of the paper's."""


class ContentionError(UserError):
    """Contention that cannot be made on this machine."""


class Leg(NamedTuple):
    """One way of a transfer, from `start` to `end` in seconds, between two machines."""

    start: float
    end: float
    source: int
    target: int


def legs(machines: int, seed: int, lane: int) -> Iterator[Leg]:
    """Yield the course of a lane between `machines` machines, without end."""
    rng = Random(f"{seed}/shuffle {lane}")
    at = 0.0
    while True:
        source, target = rng.sample(range(machines), 2)
        length = 8 * rng.uniform(*SIZES) / RATE
        if at == 0.0:
            length *= rng.random()  # as if begun before, so that lanes do not march in step
        turn, end = at + length, at + 2 * length
        yield Leg(at, turn, source, target)
        yield Leg(turn, end, target, source)
        at = end


class Traffic:
    """The legs of all lanes between `machines` machines, drawn as far as asked for. Each machine's
    times of asking must not decrease."""

    def __init__(self, shuffles: int, machines: int, seed: int) -> None:
        self._legs = heapq.merge(*(legs(machines, seed, lane) for lane in range(shuffles)))
        self._next = next(self._legs, None)
        self._coming: list[deque[Leg]] = [deque() for _ in range(machines)]

    def to(self, machine: int, until: float) -> list[Leg]:
        """Return the legs to this machine that start up to `until`, in order, each only once."""
        while (leg := self._next) is not None and leg.start <= until:
            coming = self._coming[leg.target]
            while coming and coming[0].end < leg.start:  # of one that is seldom asked about
                coming.popleft()
            coming.append(leg)
            self._next = next(self._legs)
        coming, found = self._coming[machine], []
        while coming and coming[0].start <= until:
            found.append(coming.popleft())
        return found


# Machines

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


@dataclass(frozen=True)
class Star:
    """The namespaces around the switch, as ids of processes that hold them."""

    frontend: int
    machines: tuple[int, ...]

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


def enter(holder: int) -> tuple[str, ...]:
    """Return what a command begins with that runs in a namespace."""
    return ("nsenter", "--target", str(holder), "--net")


def machine_address(machine: int) -> str:
    """Return the address of a machine of the star."""
    return f"198.18.{1 + machine // 250}.{1 + machine % 250}"


@contextmanager
def star(machines: int) -> Iterator[Star]:
    """Make such a network while the context lasts. Raises ContentionError if it cannot be made."""
    check_privileges()
    with ExitStack() as stack:
        holders = [stack.enter_context(_namespace()) for _ in range(2 + machines)]
        made = Star(holders[1], tuple(holders[2:]))
        _connect_all(holders[0], made)
        yield made


@contextmanager
def _namespace() -> Iterator[int]:
    """Make a network namespace, with all interfaces in it, for as long as a process is in it. Gives
    the id of one that ends with the context, or with this process however that ends."""
    command = ["unshare", "--net", "sh", "-c", "echo && exec cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as holder:
        if holder.stdout is None or not holder.stdout.readline():
            raise ContentionError("unshare cannot make a network namespace here")
        yield holder.pid


def _connect_all(switch: int, made: Star) -> None:
    queue = f"burst {BURST}b limit {QUEUE}b"
    addresses = [FRONTEND_ADDRESS, *map(machine_address, range(len(made.machines)))]
    configure("ip", ["link add name bridge0 type bridge", "link set dev bridge0 up"], switch)
    for number, holder in enumerate((made.frontend, *made.machines)):
        port, address = f"port-{number}", addresses[number]
        ends = [
            f"link add name {port} type veth peer name eth0 netns {holder}",
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
        configure("ip", commands, holder)
        if number:
            for where, device, faster in ((switch, port, 1), (holder, "eth0", UP)):
                shape = f"root tbf rate {faster * RATE:.0f}bit {queue}"
                configure("tc", [f"qdisc add dev {device} {shape}"], where)


def configure(tool: str, commands: Sequence[str], holder: int) -> None:
    """Let `ip` or `tc` execute commands. Raises ContentionError with its message if it fails."""
    arguments = [*enter(holder), tool, "-batch", "-"]
    done = subprocess.run(arguments, input="\n".join(commands), capture_output=True, text=True)
    if done.returncode:
        raise ContentionError(f"{tool} cannot set the network up: {done.stderr.strip()}")


@contextmanager
def _inside(holder: int) -> Iterator[None]:
    """Move this thread into a namespace; sockets opened meanwhile stay there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/proc/{holder}/ns/net") as there:
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
