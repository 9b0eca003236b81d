"""A gate that nothing has calibrated earns its coverage while `parm serve` serves."""

import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from commands import Here, assert_refused, parm
from served import (
    INFER,
    ServerProcess,
    infer_message,
    predictions,
    queries,
    write_linear_bundle,
)

pytestmark = pytest.mark.slow


def load(server: ServerProcess, rows: int, seed: int) -> None:
    """So many queries, one at a time; each is answered as the model would."""
    given = queries(rows, seed)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for row in given:
            answer = client.post(INFER, json=infer_message(row[np.newaxis])).json()
            found = np.array(answer["outputs"][0]["data"])
            assert found.argmax() == predictions(row[np.newaxis]).argmax()


def is_open(server: ServerProcess) -> bool:
    return server.metric("parm_gate_open") == 1


@pytest.mark.parametrize(
    ("policy", "backed"), [("adaptive", True), ("parity", False)], ids=["backup", "reconstruction"]
)
def test_it_starts_closed_opens_by_itself_and_is_open_from_the_start_next_time(
    tmp_path: Path, policy: str, backed: bool
) -> None:
    bundle = write_linear_bundle(tmp_path, coded=not backed, backed=backed)
    state = tmp_path / "state"
    options = (str(bundle), "--policy", policy, "--agreement", "0.9", "--compare", "1")
    with ServerProcess(*options, "--state", str(state)) as server:
        assert not is_open(server)
        for seed in range(10):
            load(server, 200, seed)
            if is_open(server):
                break
        assert is_open(server)
        compared = server.metric("parm_stand_in_answers_compared_total")
        assert compared >= 200
        assert server.metric("parm_stand_in_answers_disagreed_total") == 0
        assert 0 < server.metric("parm_gate_coverage") <= 1
        assert server.metric("parm_gate_turns_total") >= 1
        about = httpx.get(f"{server.url}/v2/models/model").json()
        (gate,) = about["gates"].values()
        assert gate["agreement"] == 0.9
    (kept,) = state.glob("*.json")
    assert json.loads(kept.read_text())["stand_ins"]
    assert not (bundle / "evidence").exists()
    with ServerProcess(*options, "--state", str(state)) as server:
        assert is_open(server)
    with ServerProcess(*options, "--state", str(tmp_path / "another")) as server:
        assert not is_open(server)


def test_without_a_word_what_is_learned_is_kept_in_the_bundle(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path, coded=False, backed=True)
    with ServerProcess(str(bundle), "--agreement", "0.9", "--compare", "1") as server:
        load(server, 20, 0)
    assert list((bundle / "evidence").glob("evidence-*.json"))
    with ServerProcess(str(bundle), "--agreement", "0.9"):
        pass  # the bundle is still whole


def test_a_state_that_cannot_be_used_is_warned_of_and_the_server_serves(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path, coded=False, backed=True)
    (tmp_path / "file").touch()
    for state in (tmp_path / "file", Path("/proc/none")):
        options = ("--port", "0", "--agreement", "0.9", "--state", str(state))
        process = subprocess.Popen(
            parm("serve", str(bundle), *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, url
        assert f"evidence cannot be kept in {state}" in said
        assert "the gate of the backup starts closed, as it is not calibrated" in said


def test_a_share_that_is_none_is_refused(tmp_path: Path, parm_here: Here) -> None:
    bundle = write_linear_bundle(tmp_path, coded=False, backed=True)
    for share in ("1.5", "-0.1", "often"):
        assert_refused(parm_here("serve", bundle, "--compare", share), "--compare")
