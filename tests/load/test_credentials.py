"""`parm load` at a server over TLS that asks for a token."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from access_files import TOKEN, Files
from commands import Here, assert_refused, parm
from served import ServerProcess, queries, write_linear_bundle


@pytest.mark.slow
def test_a_server_with_tokens_is_loaded(tmp_path: Path) -> None:
    files, ca, rows = Files(tmp_path), tmp_path / "ca.pem", tmp_path / "queries.npy"
    files.authority.cert_pem.write_to_path(ca)
    np.save(rows, queries(20))
    access = ("--tls-cert", files.certificate, "--tls-key", files.key, "--tokens", files.tokens)
    options = ("--policy", "none", "--instances", "1", *map(str, access))
    with ServerProcess(str(write_linear_bundle(tmp_path)), *options) as server:
        url, out = server.url, tmp_path / "report.json"
        own = {name: value for name, value in os.environ.items() if name != "PARM_TOKEN"}

        def load(
            *arguments: object, token: str | None = TOKEN, trusts: bool = True
        ) -> "subprocess.CompletedProcess[str]":
            environment = (
                own
                | ({"PARM_CA_FILE": str(ca)} if trusts else {})
                | ({} if token is None else {"PARM_TOKEN": token})
            )
            of = ("load", *arguments, "--inputs", rows, "--rate", 50, "--queries", 50)
            command = parm(*map(str, of))
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        done = load(url, "--json", out)
        assert done.returncode == 0, done.stderr
        assert json.loads(out.read_text())["answered"] == 50
        assert TOKEN not in out.read_text()
        for token in (None, "a-token-that-the-server-does-not-know"):
            for model in ((), ("--model", "model")):
                refused = load(url, *model, token=token)
                assert_refused(refused, "(HTTP 401)")
                assert_refused(refused, "give one as the variable PARM_TOKEN")
        assert_refused(load(url.replace("https", "http"), trusts=False), "no server answers")
        assert_refused(load(url, trusts=False), "its certificate is not trusted")


def test_invalid_credentials_are_refused(
    tmp_path: Path, parm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    of = ("load", "https://127.0.0.1:1", "--inputs", "queries.npy", "--rate", "1")
    for file in ("none.pem", "nowhere.pem"):
        monkeypatch.setenv("PARM_CA_FILE", str(tmp_path / file))
        assert_refused(parm_here(*of), f"cannot read certificates from {tmp_path / file}")
    monkeypatch.setenv("PARM_TOKEN", "of\ntwo lines")
    assert_refused(parm_here(*of), "characters that tokens cannot have")
