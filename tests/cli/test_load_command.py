"""`parm load` against servers that are processes of their own, as people use it."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Here, assert_refused, parm
from served import INPUTS, ServerProcess, predictions, queries, until, write_linear_bundle

pytestmark = pytest.mark.slow

ROWS = 40


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_linear_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def server(bundle: str) -> Iterator[ServerProcess]:
    """It refuses nobody for a queue, however slow the machine is."""
    patient = ("--deadline", "240")
    with ServerProcess(bundle, "--policy", "none", "--instances", "1", *patient) as process:
        yield process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs and labels, one in four of which is wrong, in files of each kind."""
    folder = tmp_path_factory.mktemp("data")
    inputs = queries(ROWS)
    labels = predictions(inputs).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 10
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "queries.npz", inputs=inputs, labels=labels)
    np.savez(folder / "narrow.npz", inputs=inputs[:, :7], labels=labels)
    (folder / "times.txt").write_text("".join(f"{1.7e9 + 0.01 * i}\n" for i in range(30)))
    (folder / "empty.txt").write_text("")
    return folder


def load(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(parm("load", *map(str, arguments)), capture_output=True, text=True)


def test_every_answer_is_judged(server: ServerProcess, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    done = load(
        server.url, "--inputs", data / "queries.npz", "--rate", 200, "--queries", 200,
        "--batch", 2, "--json", out, "--binary",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("p50", "p90", "p99.5", "p99.9", "max", "model", "later than scheduled"):
        assert word in done.stdout
    report = json.loads(out.read_text())
    assert (report["queries"], report["answered"], report["errors"]) == (200, 200, {})
    assert report["sources"] == {"model": {"count": 200, "accuracy": report["accuracy"]}}
    assert report["load"]["binary"]
    right = np.random.default_rng((0, 1)).integers(ROWS, size=200) % 4 != 0
    assert report["accuracy"] == pytest.approx(right.mean())


def running_load(*arguments: object) -> subprocess.Popen[str]:
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(parm("load", *map(str, arguments)), text=True, **pipes)


def test_an_interrupt_ends_the_load(server: ServerProcess, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    before = server.metric("parm_requests_total")
    asking = running_load(
        server.url, "--inputs", data / "queries.npz", "--rate", 100, "--duration", 600,
        "--json", out,
    )  # fmt: skip
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
    ("URL --inputs DATA/queries.npz --rate 0", "'--rate': must be from"),
    ("URL --inputs DATA/queries.npz --rate 9 --trace DATA/times.txt", "and not both"),
    ("URL --inputs DATA/queries.npz --rate 9 --queries 9 --duration 9", "not both"),
    ("URL --inputs DATA/queries.npz --rate 9 --queries 0", "'--queries': must be from 1"),
    ("URL --inputs DATA/queries.npz --trace DATA/empty.txt", "must have one time in seconds"),
    ("URL --inputs DATA/queries.npz --trace DATA/times.txt --queries 31", "has 30 requests, but"),
    ("URL --inputs DATA/none.npz --rate 9", "give an .npy or an .npz file"),
    ("URL --inputs DATA/narrow.npz --rate 9", f"takes 'input' FP32 [{INPUTS}]"),
    ("URL --model nonesuch --inputs DATA/queries.npz --rate 9", "has no model 'nonesuch'"),
    ("http://127.0.0.1:1 --inputs DATA/queries.npz --rate 9", "127.0.0.1:1: Connection refused"),
    ("localhost --inputs DATA/queries.npz --rate 9", "is not a server's address"),
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
