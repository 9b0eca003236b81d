"""A transfer that fails leaves nothing behind."""

import os
import socket
import threading
import time
from threading import Event

import pytest

from parity_models_lab.contention.shuffles import transfer


def test_a_transfer_whose_receiver_fails_closes_both_ends_and_ends_its_thread() -> None:
    sender, receiver = socket.socketpair()
    receiver.close()
    before = set(threading.enumerate())
    with open(os.memfd_create("zeros"), "wb") as zeros:
        zeros.truncate(1 << 20)
        with pytest.raises(OSError, match="Bad file descriptor"):
            transfer(zeros.fileno(), sender, receiver, time.monotonic() + 60, Event())
    assert sender.fileno() == -1
    assert set(threading.enumerate()) <= before
