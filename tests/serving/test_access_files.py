"""Wrong files of certificates and tokens are named; what was read before stays in force."""

import asyncio
import socket
import time
from collections.abc import Callable
from ssl import SSLContext

import numpy as np
import pytest

from access_files import HASHED, HOST, OTHER, TOKEN, Files
from http_served import Echo, binary, eventually, get, serving
from parity_models.errors import UserError
from parity_models.serving.access import MIN_TOKEN, Certificate, Tokens


def test_files_that_are_no_certificate_or_of_another_are_named(files: Files) -> None:
    other = files.key.with_name("other.key")
    files.authority.issue_cert(HOST).private_key_pem.write_to_path(other)
    with pytest.raises(UserError, match=r"other\.key is not that of the certificate .*tls\.crt"):
        Certificate(files.certificate, other)
    for pair in ((files.key, files.key), (files.certificate, files.certificate)):
        with pytest.raises(UserError, match="cannot be used"):
            Certificate(*pair)
    with pytest.raises(UserError, match=r"missing\.crt, cannot be read: No such file"):
        Certificate(files.certificate.with_name("missing.crt"), files.key)


def test_a_wrong_file_leaves_the_one_before(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    certificate, tokens = Certificate(files.certificate, files.key), Tokens(files.tokens)
    before = certificate.context
    files.key.write_text("nothing")
    files.tokens.write_text("short\n")
    certificate.refresh()
    tokens.refresh()
    assert certificate.context is before
    assert tokens.admits(f"Bearer {TOKEN}")
    assert caplog.text.count("stays in force") == 2
    assert "short" not in caplog.text
    files.renew()
    certificate.refresh()
    assert certificate.context is not before


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("# none\n", "has no token"),
        ("x" * (MIN_TOKEN - 1), "line 1 of .* is not a token"),
        (f"{TOKEN}\ntwo words that are long\n", "line 2 of .* is not a token"),
        ("sha256:1234", "line 1 of .* is not a token"),
    ],
)
def test_files_that_hold_no_tokens_are_refused(files: Files, text: str, wrong: str) -> None:
    files.tokens.write_text(text)
    with pytest.raises(UserError, match=wrong) as caught:
        Tokens(files.tokens)
    assert TOKEN not in str(caught.value)


def test_tokens_are_told_apart(files: Files) -> None:
    tokens = Tokens(files.tokens)
    for admitted in (f"Bearer {TOKEN}", f"bearer {OTHER}", f"BEARER  {TOKEN}"):
        assert tokens.admits(admitted)
    for refused in (None, "", TOKEN, f"Bearer {TOKEN}x", f"Bearer {HASHED}", "Bearer \udc80"):
        assert not tokens.admits(refused)


# Connections over TLS have the limits that others have


Tls = Callable[[], SSLContext]


@pytest.fixture
def tls(files: Files) -> Tls:
    certificate = Certificate(files.certificate, files.key)
    return lambda: certificate.context


async def test_a_handshake_that_does_not_come_ends_in_time(tls: Tls) -> None:
    async with serving(tls=tls, head_timeout=0.2) as served:
        client = await served.connect()
        assert await client.rest() == b""
        handshakes = "parm_connections_ended_total"
        await eventually(lambda: served.counted(handshakes, limit="handshake") == 1, "not counted")
        assert served.server.connections == 0


async def test_a_slow_client_gets_all_of_the_last_answer_over_tls(files: Files, tls: Tls) -> None:
    async with serving(Echo(times=1000), tls=tls) as served:
        here = ("127.0.0.1", served.port)
        reader, writer = await asyncio.open_connection(*here, limit=2**16, ssl=files.trusting)
        request = binary(np.zeros((2000, 4), np.float32))
        writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        size = 0
        while piece := await reader.read(2**16):
            size += len(piece)
            await asyncio.sleep(0.01 if size < 10**7 else 0)
        assert size > 32 * 10**6
        writer.close()


async def test_plain_text_on_a_tls_port_ends_only_its_connection(files: Files, tls: Tls) -> None:
    async with serving(tls=tls) as served:
        client = await served.connect()
        client.send(get())
        assert b"HTTP/1.1 200" not in await client.rest()
        client = await served.connect(files.trusting)
        assert (await client.ask(get()))[0] == 200


async def test_a_server_stops_though_handshakes_hang(tls: Tls) -> None:
    async with serving(tls=tls, head_timeout=60) as served:
        with socket.create_connection(("127.0.0.1", served.port)):
            await eventually(lambda: served.server.connections == 1, "no client arrives")
            (connection,) = served.server._connections
            connection.check(time.monotonic() + 100)  # the handshake has its own timeout
            async with asyncio.timeout(60):
                await served.server.stop()
        assert served.server.connections == 0
