"""`parm load` and `parm record` at a server that asks who asks, over TLS."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import forked
from access_files import OTHER, TOKEN, Files
from commands import Here, assert_refused
from parity_models.errors import LoadError, UserError
from parity_models.load.recorder import record
from parity_models.models.bundle import open_bundle
from parity_models.serving.access import Access
from parity_models.serving.client import Credentials
from parity_models.serving.server import ServeOptions, Server
from served import ServerProcess, queries, write_linear_bundle

pytestmark = pytest.mark.slow


class Guarded:
    """A server over TLS that asks for a token, and the files that go with it."""

    def __init__(self, folder: Path) -> None:
        self.bundle = write_linear_bundle(folder)
        self.files = Files(folder)
        self.ca = folder / "ca.pem"
        self.files.authority.cert_pem.write_to_path(self.ca)
        self.queries = folder / "queries.npy"
        np.save(self.queries, queries(20))
        files = self.files
        self.access = (
            *("--tls-cert", files.certificate),
            *("--tls-key", files.key),
            *("--tokens", files.tokens),
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def server(guarded: Guarded) -> Iterator[ServerProcess]:
    options = ("--policy", "none", "--instances", "1", *map(str, guarded.access))
    with ServerProcess(str(guarded.bundle), *options) as process:
        yield process


def run(*arguments: object, token: str | None = None) -> "subprocess.CompletedProcess[str]":
    """`parm`, where the variable has this token."""
    environment = {name: value for name, value in os.environ.items() if name != "PARM_TOKEN"}
    if token is not None:
        environment["PARM_TOKEN"] = token
    return forked.run(*map(str, arguments), environment=environment)


def test_a_load_is_answered_that_shows_a_token_and_trusts_the_certificate(
    guarded: Guarded, server: ServerProcess, tmp_path: Path
) -> None:
    assert server.url.startswith("https://")
    of = ("load", server.url, "--inputs", guarded.queries, "--rate", 100, "--queries", 50)
    out = tmp_path / "report.json"
    done = run(*of, "--ca-file", guarded.ca, "--json", out, "--processes", 2, token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["answered"] == 50
    assert TOKEN not in out.read_text()
    done = run(*of, "--ca-file", guarded.ca, token=OTHER)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model", [(), ("--model", "model")])
def test_a_load_without_a_token_that_the_server_knows_says_what_is_missing(
    guarded: Guarded, server: ServerProcess, model: tuple[str, ...]
) -> None:
    of = ("load", server.url, "--inputs", guarded.queries, "--rate", 100, "--queries", 5, *model)
    for token in (None, "a-token-that-nobody-knows"):
        refused = run(*of, "--ca-file", guarded.ca, token=token)
        assert_refused(refused, "(HTTP 401)")
        assert_refused(refused, "give one as the variable PARM_TOKEN")
    plain = ("load", server.url.replace("https", "http"), *of[2:])
    assert_refused(run(*plain, token=TOKEN), "no server answers")
    assert_refused(run(*of, token=TOKEN), "its certificate is not trusted")


def test_what_cannot_be_shown_or_trusted_is_named(
    guarded: Guarded, tmp_path: Path, parm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    url, inputs = "https://127.0.0.1:1", str(guarded.queries)
    of = ("load", url, "--inputs", inputs, "--rate", "1")
    for file in ("none.pem", "nowhere.pem"):
        outcome = parm_here(*of, "--ca-file", tmp_path / file)
        assert_refused(outcome, f"cannot read certificates from {tmp_path / file}")
    monkeypatch.setenv("PARM_TOKEN", "of\ntwo lines")
    assert_refused(parm_here(*of), "characters that no token has")


async def test_a_server_with_tokens_is_recorded(guarded: Guarded) -> None:
    files = guarded.files
    access = Access(
        tls_cert=str(files.certificate), tls_key=str(files.key), tokens=str(files.tokens)
    )
    async with Server(open_bundle(guarded.bundle), ServeOptions(port=0, access=access)) as server:
        with pytest.raises(LoadError, match=r"refuses \(HTTP 401\).*PARM_TOKEN"):
            await record(server.url, 1.0, credentials=Credentials(None, guarded.ca))
        with pytest.raises(LoadError, match="its certificate is not trusted"):
            await record(server.url, 1.0, credentials=Credentials(TOKEN))
        recording = asyncio.create_task(
            record(server.url, 2.0, credentials=Credentials(TOKEN, guarded.ca))
        )
        while not recording.done():
            await server.deployment.frontend.infer(queries(100))
            await asyncio.sleep(0.003)
        assert (await recording).runs["deployed"].units >= 100


def test_credentials_reach_processes_of_a_load_and_nothing_else_does(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARM_TOKEN", "a-token-of-somebody-else")
    given = Credentials(TOKEN, guarded.ca)
    assert "PARM_TOKEN" not in Credentials().environment
    assert given.environment["PARM_TOKEN"] == TOKEN
    for name, value in given.environment.items():
        monkeypatch.setenv(name, value)
    assert Credentials.of_environment() == given
    with pytest.raises(UserError, match="no token has"):
        Credentials("with a\nbreak")
