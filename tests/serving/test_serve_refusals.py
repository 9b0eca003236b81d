"""`parm serve` explains what it cannot do."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from commands import Here, assert_refused, parm
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from served import (
    write_linear_bundle,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def uncoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("uncoded"), coded=False)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("instances", 0, "instances must be 1 or more, got 0"),
        ("extra_instances", 0, "extra_instances must be 1 or more"),
        ("max_batch", 0, "max_batch must be 1 or more"),
        ("max_queue", 0, "max_queue must be 1 or more"),
        ("shutdown_delay", -1, "shutdown_delay must be 0 or more, got -1"),
        ("shutdown_delay", float("inf"), "shutdown_delay must be 0 or more, got inf"),
        ("deadline", 0, "deadline must be above 0"),
        ("deadline", float("nan"), "deadline must be above 0"),
        ("deadline", float("inf"), "deadline must be above 0"),
        ("default_prediction", (float("nan"),), "default_prediction must be finite"),
        ("port", -1, "port must be from 0 to 65535"),
        ("port", 70000, "port must be from 0 to 65535"),
        ("name", "", "cannot be called ''"),
        ("name", "a/b", "cannot be called 'a/b'"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ServeOptions(**{option: value})


@pytest.mark.parametrize(
    ("policy", "option", "value", "reason"),
    [
        ("parity", "max_group_wait", -0.1, "max_group_wait must be 0 or more"),
        ("parity", "parity_delay", float("nan"), "parity_delay must be 0 or more"),
        ("parity", "stand_in_delay", -1, "stand_in_delay must be 0 or more"),
        ("replication", "copies", 1, "copies must be 2 or more"),
        ("hedging", "hedge_delay", 0, "hedge_delay must be above 0"),
        ("hedging", "hedge_quantile", 1, "hedge_quantile must be between 0 and 1"),
        ("hedging", "hedge_budget", 0, "hedge_budget must be above 0"),
    ],
)
def test_policies_out_of_range_are_refused(
    policy: str, option: str, value: Any, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        PolicyChoice(policy, {option: value})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--instances", "0"], "'--instances': must be 1 or more, got 0"),
        (
            ["--policy", "parity@pool=dedicated", "--extra-instances", "2"],
            "2 of 2 leave none for the model",
        ),
        (["--policy", "adaptive@pool=dedicated"], "no option of the policy adaptive but of parity"),
        (["--policy", "replicate"], "replicate"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--faults", "no-such-file.json"], "no-such-file.json"),
        (["--faults", '{"kills": [{"worker": 9, "at": 1}]}'], "names worker 9"),
    ],
)
def test_options_that_cannot_be_are_explained(
    parm_here: Here, bundle: Path, arguments: list[str], reason: str
) -> None:
    assert_refused(parm_here("serve", bundle, *arguments), reason)


def test_bundles_that_cannot_be_served_are_explained(
    parm_here: Here, uncoded: Path, tmp_path: Path
) -> None:
    assert_refused(parm_here("serve", tmp_path / "missing"), "there is no bundle at")
    assert_refused(parm_here("serve", uncoded, "--policy", "parity"), "has no parity model")
    (tmp_path / "manifest.json").write_text("{}")
    assert_refused(parm_here("serve", tmp_path), "manifest.json")


def test_a_port_in_use_is_explained(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = parm("serve", str(bundle), "--port", port)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert_refused(done, f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose")
    assert not done.stdout
