"""`parm serve` explains what it cannot do."""

import socket
import subprocess
from pathlib import Path

import pytest

from commands import Here, assert_refused, parm
from parity_models.serving.errors import OverloadedError, UnavailableError
from served import write_linear_bundle


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--instances 0", "'--instances': must be a whole number, from 1 to 100000; got '0'"),
        ("--name a/b", "cannot be called 'a/b'"),
        ("--policy parity@pool=dedicated --extra-instances 3", "3 of 3 leave none for the model"),
        ("--policy approximate-backup --instances 1", "give more --instances"),
        ("--policy none --extra-instances 1", "none has no instances that run stand-ins only"),
        ("--policy adaptive@pool=dedicated", "not an option of the policy adaptive but of parity"),
        ("--policy replicate", "replicate"),
        ("--differ nan", "from 0 to 1; got 'nan'"),
        ("--differ 1% --policy hedging", "differ is not an option of the policy hedging"),
        ("--differ 1% --policy adaptive@differ=2%", "give --differ or adaptive@differ=0.02"),
        ("--policy replication@copies=1", "copies of replication must be a whole number, at least"),
        ("--policy hedging@hedge-delay=5,hedge-quantile=0.9", "give hedge-delay or hedge-q"),
        ("--policy parity --dispatch random", "random"),
        ("--host no.such.host.invalid", "cannot listen on no.such.host.invalid"),
        ("--host=", "--host is an address; for every network write 0.0.0.0"),
        ("--faults no-such-file.json", "no-such-file.json"),
        ('--faults {"kills":[{"worker":9,"at":1}]}', "names worker 9"),
        ("--compare 1.5", "--compare"),
        ("--compare often", "--compare"),
        ("--max-body 2000", "--max-body (2000 MiB) must not be above what all"),
        ("--tenant-header x:y", "--tenant-header must be a header's name"),
        ("--policy hedging --agreement 0.9", "leave --agreement out"),
        ("--tls-cert x", "give both, --tls-cert and --tls-key"),
        ("--stand-in-only --policy none", "--policy is for servers that run the model"),
        ("--stand-in-only --ui", "--ui is for servers that run the model"),
        ("--stand-in-only --engine ray", "no engine or dispatch rule"),
    ],
)
def test_bad_options_are_named(parm_here: Here, backed: Path, arguments: str, reason: str) -> None:
    assert_refused(parm_here("serve", backed, *arguments.split()), reason)


def test_bundles_that_cannot_be_served_are_explained(parm_here: Here, tmp_path: Path) -> None:
    assert_refused(parm_here("serve", tmp_path / "missing"), "there is no bundle at")
    (tmp_path / "bare").mkdir()
    bare = write_linear_bundle(tmp_path / "bare", coded=False)
    for policy, command in [
        ("parity", "parm parity --model BUNDLE --out"),
        ("adaptive", "parm parity --model BUNDLE --out"),
        ("approximate-backup", "parm backup --model BUNDLE --network linear --out"),
    ]:
        assert_refused(parm_here("serve", bare, "--policy", policy), command)
    assert_refused(parm_here("serve", bare, "--stand-in-only"), "has no backup")
    (tmp_path / "manifest.json").write_text("{}")
    assert_refused(parm_here("serve", tmp_path), "manifest.json")


@pytest.mark.slow
@pytest.mark.parametrize("given", [("--port",), ("--port", "0", "--metrics-port")])
def test_a_port_in_use_is_explained(backed: Path, given: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = parm("serve", str(backed), *given, port)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert_refused(done, f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose")
    assert not done.stdout


def test_retry_after_is_spread_if_no_time_is_known() -> None:
    told = {OverloadedError("too much").retry_after for _ in range(20)}
    assert len(told) == 20
    assert all(each is not None and 1 <= each <= 2 for each in told)
    assert OverloadedError("too much", retry_after=0.25).retry_after == 0.25
    assert UnavailableError("stopped").retry_after is None
