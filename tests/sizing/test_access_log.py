"""Advice from an access log: nothing is guessed, and servers are replayed as they were."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Here
from parity_models.errors import UserError
from parity_models.sizing.access_log import LEAST, AccessLog, advise

Request = tuple[float, float, str]


def queued(
    runs: Sequence[float], arrivals: Sequence[float], slots: int, upstream: str = "a"
) -> list[Request]:
    """Requests to a server that runs `slots` at a time, in order."""
    free, requests = [0.0] * slots, []
    for arrival, run in zip(arrivals, runs, strict=True):
        begins = max(arrival, min(free))
        free[free.index(min(free))] = begins + run
        requests.append((arrival, begins + run - arrival, upstream))
    return requests


def write(path: Path, requests: Sequence[Request], form: str = "csv") -> Path:
    lines = ["time,arrival,latency,upstream"] if form == "csv" else []
    for arrival, latency, upstream in sorted(requests, key=lambda each: each[0] + each[1]):
        if form == "csv":
            lines.append(f"ignored,{arrival!r},{latency!r},{upstream}")
        else:
            said = {"arrival": f"{arrival!r}", "latency_ms": 1e3 * latency, "upstream": upstream}
            lines.append(msgspec.json.encode(said).decode())
    path.write_text("\n".join(lines))
    return path


def with_spells(queries: int = 3000) -> list[Request]:
    """Four servers in turn; one after another is six times as slow for a while."""
    draw = random.Random(0)
    arrivals = np.cumsum([draw.expovariate(150) for _ in range(queries)]).tolist()
    requests = []
    for server in range(4):
        own = arrivals[server::4]
        runs = [0.01 * (6 if int(each) % 20 == 5 * server else 1) for each in own]
        requests += queued(runs, own, 1, f"10.0.0.{server}:80")
    return requests


@pytest.mark.parametrize("form", ["csv", "json"])
def test_run_times_are_told_from_waits(tmp_path: Path, form: str) -> None:
    draw = random.Random(1)
    arrivals = [1.6e9 + each * 0.01 for each in range(400)]
    runs = [draw.choice([0.002, 0.03]) for _ in arrivals]
    log = AccessLog.read(write(tmp_path / "log", queued(runs, arrivals, 1), form))
    ((began, took),) = log.servers
    np.testing.assert_allclose(took, runs, atol=1e-5)
    assert np.all(np.diff(began) >= np.array(took[:-1]) - 1e-5)


def test_servers_that_run_several_at_a_time_are_noticed(tmp_path: Path) -> None:
    draw = random.Random(2)
    arrivals = [0.01 * each for each in range(400)]
    runs = [draw.choice([0.002, 0.05]) for _ in arrivals]
    file = write(tmp_path / "log.csv", queued(runs, arrivals, 3))
    with pytest.raises(UserError, match=r"runs more than 1 at a time; give instances="):
        AccessLog.read(file)
    ((_, took),) = AccessLog.read(file, 3).servers
    np.testing.assert_allclose(sorted(took), sorted(runs), atol=1e-5)


@pytest.mark.slow
def test_a_stand_in_cuts_the_tail_of_slow_spells(tmp_path: Path, parm_here: Here) -> None:
    file, out = write(tmp_path / "log.json", with_spells(), "json"), tmp_path / "out.json"
    stand_in = ("--backup-time", "2ms", "--coverage", "0.9")
    done = parm_here("plan", "--log", file, *stand_in, "--json", out)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(out.read_bytes())
    p99 = {name: row["p99_ms"] for name, row in found["rows"].items()}
    assert p99["one queue, a stand-in"] < p99["one queue, hedging"] < p99["as logged"]
    assert p99["a stand-in behind Envoy"] < p99["as logged"]
    assert f"per_try_timeout: {found['per_try_timeout']:.3f}s" in done.stdout
    assert "├" in done.stdout
    without = advise(file)
    assert "a stand-in behind Envoy" not in without.rows
    assert without.rows["as logged"].p99_ms == p99["as logged"]


ROW = "1.0,0.1,a"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.0,,a", "got `str` - at `$.latency`"),
        ("yesterday,0.1,a", "at `$.arrival`"),
        ("2025-13-01T00:00:00Z,0.1,a", "datetime - at `$.arrival`"),
        ("1.0,-0.1,a", ">= 0.0 - at `$.latency`"),
        ("1.0,90000,a", "<= 86400.0 - at `$.latency`"),
        ("nan,0.1,a", ">= 0.0 - at `$.arrival`"),
        ("1.0,0.1", "2 values for 3 columns"),
        ("1.0,0.1,-", "no upstream answered"),
        ('1.0,0.1,"a', "line 3"),
        ('{"arrival": 1, "latency": true, "upstream": "a"}', "got `bool` - at `$.latency`"),
        (
            '{"arrival": 1, "latency": 1, "latency_ms": 1, "upstream": "a"}',
            "not both",
        ),
        ('{"arrival": 1, "latency": 1, "upstream": null}', "got `null` - at `$.upstream`"),
        ('{"arrival": 1', "line 3"),
        ("1.0,0.1,\xff", "can't decode"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "log"
    rows = "\n".join(["arrival,latency,upstream", ROW, line, *[ROW] * LEAST])
    file.write_bytes(rows.encode("latin-1"))
    with pytest.raises(UserError, match="line 3") as refused:
        AccessLog.read(file)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (["latency,upstream", ROW], {}, "line 1: the first line of CSV must name the columns"),
        (["arrival,latency,upstream", ROW], {}, "has 1 requests"),
        (["arrival,latency,upstream", *[ROW] * LEAST], {}, "arrive within 0 s"),
        (["arrival,latency", *(f"{i},1" for i in range(LEAST))], {}, "names no upstream"),
        (
            ["arrival,latency,upstream", *(f"{i},1,{i % 2}" for i in range(LEAST))],
            {"instances": 3},
            "a multiple of 2",
        ),
        (["arrival,latency,upstream", *(f"{i},0,a" for i in range(LEAST))], {}, "took no time"),
        ([], {"rate": 9.0}, "give only a bundle, instances=, backup_time=, coverage="),
    ],
)
def test_unusable_logs_are_refused(
    tmp_path: Path, rows: list[str], options: dict[str, Any], said: str
) -> None:
    (tmp_path / "log.csv").write_text("\n".join(rows))
    with pytest.raises(UserError) as refused:
        advise(tmp_path / "log.csv", **options)
    assert said in str(refused.value)


@given(st.binary(max_size=300))
def test_bytes_are_no_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content)
    with pytest.raises(UserError):
        AccessLog.read(file)
