"""A gate that nothing has calibrated earns its coverage while `parm serve` serves."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from served import INFER, ServerProcess, infer_message, predictions, queries, write_linear_bundle

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
def test_it_opens_by_itself_and_stays_open(tmp_path: Path, policy: str, backed: bool) -> None:
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
