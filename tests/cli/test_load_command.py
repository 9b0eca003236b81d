"""`parm load` against servers that are processes of their own, as people use it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from access_files import TOKEN, Files
from commands import Here, assert_refused, parm, succeeded
from served import ServerProcess, predictions, queries, until

pytestmark = pytest.mark.slow

ROWS = 40


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    """It refuses nobody for a queue, however slow the machine is."""
    patient = ("--deadline", "240")
    with ServerProcess(str(bundle), "--policy", "none", "--instances", "1", *patient) as process:
        yield process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of inputs and labels, one in four of which is wrong."""
    folder = tmp_path_factory.mktemp("data")
    inputs = queries(ROWS)
    labels = predictions(inputs).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 10
    np.savez(folder / "queries.npz", inputs=inputs, labels=labels)
    return folder


def load(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(parm("load", *map(str, arguments)), capture_output=True, text=True)


def test_every_answer_is_judged(server: ServerProcess, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    done = succeeded(load(
        server.url, "--inputs", data / "queries.npz", "--rate", 200, "--queries", 200,
        "--batch", 2, "--json", out, "--binary",
    ))  # fmt: skip
    for word in ("p50", "p90", "p99.5", "p99.9", "max", "model", "later than scheduled"):
        assert word in done.stdout
    report = json.loads(out.read_text())
    assert (report["queries"], report["answered"], report["errors"]) == (200, 200, {})
    assert report["sources"] == {"model": {"count": 200, "accuracy": report["accuracy"]}}
    assert report["load"]["binary"]
    right = np.random.default_rng((0, 1)).integers(ROWS, size=200) % 4 != 0
    assert report["accuracy"] == pytest.approx(right.mean())


def test_an_interrupt_ends_the_load(server: ServerProcess, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    before = server.metric("parm_requests_total")
    load = ("load", server.url, "--inputs", f"{data / 'queries.npz'}", "--json", f"{out}")
    asking = subprocess.Popen(
        parm(*load, "--rate", "100", "--duration", "600"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: server.metric("parm_requests_total") > before + 20, "no requests came")
    asking.send_signal(signal.SIGINT)
    printed, errors = asking.communicate()
    assert asking.returncode == 130
    assert "p99.9" in printed
    assert "Traceback" not in errors
    report = json.loads(out.read_text())
    assert 0 < report["answered"] <= report["queries"] < report["planned"]


MISTAKES: list[tuple[str, str]] = [
    ("", "Missing argument"),
    ("URL --rate 10", "say which queries to send"),
    ("URL --inputs DATA/queries.npz", "give --rate or --trace, to say when queries are sent"),
    ("URL --inputs DATA/queries.npz --rate 9 --queries 9 --duration 9", "not both"),
    ("URL --inputs DATA/none.npz --rate 9", "give an .npy or an .npz file"),
    ("http://127.0.0.1:1 --inputs DATA/queries.npz --rate 9", "127.0.0.1:1: Connection refused"),
    ("URL --inputs DATA/queries.npz --rate 9 --json DATA", "cannot write"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[0])
def test_mistakes_end_with_one_sentence_and_exit_code_2(
    data: Path, server: ServerProcess, parm_here: Here, mistake: tuple[str, str]
) -> None:
    arguments, reason = mistake
    for word, what in {"URL": server.url, "DATA": str(data)}.items():
        arguments = arguments.replace(word, what)
    assert_refused(parm_here("load", *arguments.split()), reason)


# Servers over TLS that ask for a token


def test_a_server_with_tokens_is_loaded(bundle: Path, tmp_path: Path) -> None:
    files, ca, rows = Files(tmp_path), tmp_path / "ca.pem", tmp_path / "queries.npy"
    files.authority.cert_pem.write_to_path(ca)
    np.save(rows, queries(20))
    access = ("--tls-cert", files.certificate, "--tls-key", files.key, "--tokens", files.tokens)
    options = ("--policy", "none", "--instances", "1", *map(str, access))
    with ServerProcess(str(bundle), *options) as server:
        url, out = server.url, tmp_path / "report.json"
        own = {name: value for name, value in os.environ.items() if name != "PARM_TOKEN"}

        def ask(
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

        succeeded(ask(url, "--json", out))
        assert json.loads(out.read_text())["answered"] == 50
        assert TOKEN not in out.read_text()
        for token in (None, "a-token-that-the-server-does-not-know"):
            for model in ((), ("--model", "model")):
                refused = ask(url, *model, token=token)
                assert_refused(refused, "(HTTP 401)")
                assert_refused(refused, "set the variable PARM_TOKEN")
        assert_refused(ask(url.replace("https", "http"), trusts=False), "no server answers")
        assert_refused(ask(url, trusts=False), "its certificate is not trusted")


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
