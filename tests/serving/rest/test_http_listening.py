"""A listening socket is closed without a reset to anybody, however many connect just then."""

import socket
from contextlib import closing

import pytest

from parity_models.serving.http.listening import listen, turn_away


def test_who_comes_too_late_to_be_accepted_is_refused_and_not_reset() -> None:
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    with socket.create_connection(address) as early, closing(socket.socket()) as late:
        turn_away(listening)
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):  # not connected, so nothing of it can be lost
            late.connect(address)
        accepted, _ = listening.accept()
        with accepted:
            early.sendall(b"question")
            assert accepted.recv(10) == b"question"
            listening.close()
            accepted.sendall(b"answer")
            assert early.recv(10) == b"answer"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
