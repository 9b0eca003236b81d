"""An experiment file may name a policy and a code of one's own, and their options count."""

import json
from pathlib import Path

import pytest

from commands import Here, assert_refused
from own_coders import DECODER, ENCODER
from own_engine import ENGINE
from own_policy import POLICY, RULE
from small_experiment import train_briefly

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"

FILE = f"""
title = "One's own"
axis = "load"
points = [{{ load = 0.3 }}]
real_queries = 100
simulated_queries = 300
warm_up = 20

[setting]
instances = 2
shuffles = 0
service = {{ type = "constant", seconds = 0.004 }}
encoder = "{ENCODER}"
decoder = "{DECODER}"
encoder_options = {{ gain = 3.0 }}
decoder_options = {{ divisor = 3.0 }}

[[series]]
label = "own policy"
policy = {{ name = "{POLICY}", again_after = 0.0001, dispatch = "{RULE}", scans = 3 }}

[[series]]
label = "own policy, hardly ever"
policy = {{ name = "{POLICY}", again_after = 9.0 }}
real = false

[[series]]
label = "own code"
policy = {{ name = "parity" }}
setting = {{ slow_every = 0.2, slow_spell = 0.1, slow_factor = 20.0 }}
"""


def test_they_run_and_their_options_count(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SUPPORT)  # where their modules are found, by servers as well
    file, work, out = tmp_path / "own.toml", tmp_path / "work", tmp_path / "out"
    file.write_text(FILE)
    train_briefly(work, file)
    where = ("--figure", file, "--network", "emulated", "--out", out, "--work", work)
    done = lab_here("latency", *where)
    assert done.returncode == 0, done.stderr
    rows = {
        (row["policy"], row["run"]): row
        for row in json.loads((out / "own.json").read_text())["rows"]
    }
    assert rows["own policy", "simulated"]["work"] > 1.5
    assert rows["own policy, hardly ever", "simulated"]["work"] == 1
    assert rows["own policy", "real"]["failed"] == 0
    for run in ("real", "simulated"):
        assert rows["own code", run]["stood in"] > 0


def test_an_option_out_of_range_is_refused(lab_here: Here, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    for wrong, reason in [
        (("again_after = 9.0", "again_after = 10.0"), "again_after must be above 0 and 9 s"),
        (("gain = 3.0", "gain = 0.0"), "gain must be above 0"),
        (("scans = 3", "scan = 3"), "did you mean scans?"),
    ]:
        file.write_text(FILE.replace(*wrong))
        assert_refused(lab_here("latency", "--figure", file), reason)


def test_simulated_instances_have_no_engine(parm_here: Here) -> None:
    assert_refused(parm_here("simulate", "--engine", ENGINE), "No such option: --engine")
