"""Background shuffles: bulk transfers between machines, out and back, at all times.

Each lane is a thread that runs one transfer after the other. A transfer has its links for as
long as its bytes take at the links' rate and is then cut off, whether or not it got through:
so where two share a link, both are slowed, but neither moves those that follow.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread

from parity_models_lab.contention.network import Star
from parity_models_lab.contention.transfers import Leg, Network, legs

_CHUNK = 1 << 20
_WAKE = 1 << 18
"""Bytes that are there before a receiver is woken, to save computing time."""
_POLL = struct.pack("ll", 0, 100_000)
"""A time-out of 0.1 s, as a struct timeval."""
_RESET = struct.pack("ii", 1, 0)
"""A struct linger: on closing, discard data that is not yet sent or read."""


def start_shuffles(
    network: Network, machines: Star, seed: int, start: float, stop: Event
) -> list[Thread]:
    """Start all lanes at `start` of time.monotonic(); they end soon after `stop` is set."""
    lanes = [
        Thread(
            target=_run_lane,
            args=(legs(network, len(machines.machines), seed, lane), machines, start, stop),
        )
        for lane in range(network.shuffles)
    ]
    for lane in lanes:
        lane.start()
    return lanes


def _run_lane(course: Iterator[Leg], machines: Star, start: float, stop: Event) -> None:
    with open(os.memfd_create("shuffle"), "wb") as zeros:
        zeros.truncate(_CHUNK)
        for leg in course:
            if stop.wait(max(0.0, start + leg.start - time.monotonic())):
                return
            with suppress(OSError):  # not even a connection got through: the link is that busy
                sender, receiver = machines.connect(leg.source, leg.target)
                transfer(zeros.fileno(), sender, receiver, start + leg.end, stop)


def transfer(
    zeros: int, sender: socket.socket, receiver: socket.socket, end: float, stop: Event
) -> None:
    """Send the file `zeros`, over and over, until `end` of time.monotonic(), or `stop` is set.

    Both ends are closed afterwards, whatever happens. Raises OSError if the receiver fails.
    """
    with sender, receiver:
        sender.settimeout(None)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _POLL)
        sending = Thread(target=_send, args=(zeros, sender, end))
        sending.start()
        try:
            _receive(receiver, end, stop)
        finally:
            receiver.close()  # so that the sender ends, too
            sending.join()


def _send(zeros: int, sender: socket.socket, end: float) -> None:
    while time.monotonic() < end:
        try:
            os.sendfile(sender.fileno(), zeros, 0, _CHUNK)
        except BlockingIOError:
            continue
        except OSError:  # the receiver has reset the connection
            return


def _receive(receiver: socket.socket, end: float, stop: Event) -> None:
    buffer = bytearray(_CHUNK)
    receiver.settimeout(None)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WAKE)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    while time.monotonic() < end and not stop.is_set():
        with suppress(BlockingIOError):
            # MSG_TRUNC: TCP drops the bytes instead of copying them (tcp(7)).
            receiver.recv_into(buffer, _CHUNK, socket.MSG_TRUNC)
