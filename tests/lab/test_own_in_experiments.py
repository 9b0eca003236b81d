"""An experiment file may name a policy, a code and engines of one's own, and their options count.

Policies and codes are simulated and run for real; engines run what is real in `parm-lab reproduce
engines`, as simulated instances have none.
"""

from pathlib import Path

import pytest

from commands import Here, assert_refused
from own_coders import DECODER, ENCODER
from own_engine import EMULATED, ENGINE
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


ENGINES = f"""
title = "One's own engine"
axis = "rate"
points = [{{ rate = 30 }}]
real_queries = 100
warm_up = 20
engines = [{{ name = "{EMULATED}" }}, {{ name = "{EMULATED}", pace = 3.0, called = "there" }}]

[setting]
instances = 2
shuffles = 0
service = {{ type = "constant", seconds = 0.01 }}

[[series]]
label = "equal resources"
policy = {{ name = "equal-resources" }}
"""


def test_they_run_and_their_options_count(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SUPPORT)  # where their modules are found, by servers as well
    file, work, out = tmp_path / "own.toml", tmp_path / "work", tmp_path / "own.md"
    file.write_text(FILE)
    train_briefly(work, file)
    where = ("--figure", file, "--network", "emulated", "--out", out, "--work", work)
    done = lab_here("reproduce", "latency", *where)
    assert done.returncode == 0, done.stderr
    real, simulated = out.read_text().split("\nSimulated, ")
    assert column(simulated, "own policy", "work") > 1.5
    assert column(simulated, "own policy, hardly ever", "work") == 1
    assert column(real, "own policy", "failed") == 0
    for runs in (real, simulated):
        assert column(runs, "own code", "reconstructed") > 0


def test_engines_run_and_their_options_count(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SUPPORT)
    file, work, out = tmp_path / "own.toml", tmp_path / "work", tmp_path / "own.md"
    file.write_text(ENGINES)
    train_briefly(work, file)
    where = ("--figure", file, "--out", out, "--work", work)
    done = lab_here("reproduce", "engines", *where)
    assert done.returncode == 0, done.stderr
    slow = f"{EMULATED}@pace=3.0,called=there"
    for engine, least in ((EMULATED, 10), (slow, 30)):
        assert column(out.read_text(), engine, "p50") >= least
        assert column(out.read_text(), engine, "failed") == 0
        assert f"- **{engine}**: an engine of your own" in out.read_text()
    done = lab_here("reproduce", "engines", *where, "--engine", slow)
    assert done.returncode == 0, done.stderr
    assert "runs, about" not in done.stderr  # it has been run
    assert f"| {EMULATED} |" not in out.read_text()


def column(runs: str, series: str, name: str) -> float:
    """What a report's table says of a series."""
    table = [line.strip("| ").split(" | ") for line in runs.splitlines() if line.startswith("| ")]
    (heading,) = (row for row in table if "policy" in row)
    (row,) = (row for row in table if series in row)
    return float(row[heading.index(name)].strip("%"))


def test_an_option_out_of_range_is_refused(lab_here: Here, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    for wrong, reason in [
        (("again_after = 9.0", "again_after = 10.0"), "again_after must be above 0 and 9 s"),
        (("gain = 3.0", "gain = 0.0"), "gain must be above 0"),
        (("scans = 3", "scan = 3"), "did you mean scans?"),
    ]:
        file.write_text(FILE.replace(*wrong))
        assert_refused(lab_here("reproduce", "latency", "--figure", file), reason)


def test_an_engine_that_cannot_be_is_refused(lab_here: Here, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    for wrong, reason in [
        (("pace = 3.0", "pace = 0.5"), "pace must be 1 or more"),
        (("pace = 3.0", "space = 3.0"), "did you mean pace?"),
        ((f'name = "{EMULATED}", pace', "pace"), "one of the engines has no name"),
        ((f"{EMULATED}", f"{ENGINE}"), f"the engine {ENGINE} takes no faults"),
        ((f'"{EMULATED}", pace = 3.0', '"remote", concurrency = 2'), "no option of the engine"),
    ]:
        file.write_text(ENGINES.replace(*wrong))
        assert_refused(lab_here("reproduce", "engines", "--figure", file), reason)
    for engine, reason in [
        (f"{EMULATED}@pace=fast", "pace must be a float, got 'fast'"),
        ("remote@concurrency=2", "the engine remote is set up by the experiment"),
        ("lokal", "there is no engine 'lokal'; did you mean local?"),
    ]:
        assert_refused(lab_here("reproduce", "engines", "--engine", engine), reason)


def test_simulated_instances_have_no_engine(parm_here: Here) -> None:
    assert_refused(parm_here("simulate", "--engine", ENGINE), "No such option: --engine")
