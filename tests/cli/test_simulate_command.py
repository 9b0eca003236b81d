"""`parm simulate`: what it takes, prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from own_policy import BACKED


def test_simulate_prints_a_table_and_writes_json(parm_here: Here, tmp_path: Path) -> None:
    done = parm_here(
        "simulate", "--queries", "500", "--policy", "hedging", "--json", tmp_path / "s.json"
    )
    assert done.returncode == 0, done.stderr
    assert "hedging" in done.stdout
    assert '"p999_ms"' in (tmp_path / "s.json").read_text()
    assert '"busy_ms"' in (tmp_path / "s.json").read_text()


def test_simulate_takes_options_of_policies_traces_measured_times_and_faults(
    parm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "trace.txt").write_text("\n".join(str(7 + i / 200) for i in range(2000)))
    np.save(tmp_path / "times.npy", np.repeat([0.02, 0.03], 500))
    done = parm_here(
        "simulate", "--policy", "replication", "--copies", "3", "--policy", "parity", "--pool",
        "dedicated", "--instances", "12", "--arrivals", tmp_path / "trace.txt", "--service-times",
        tmp_path / "times.npy", "--pause-every", "2", "--pause", "300", "--kill-every", "1",
        "--deadline", "0.1", "--default-prediction", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1,000 queries at 200/s" in done.stdout
    assert "defaults" in done.stdout
    report = json.loads((tmp_path / "s.json").read_text())
    replication, parity = report["options"]
    assert (replication["copies"], parity["pool"]) == (3, "dedicated")
    assert report["setting"]["kill_every"] == 1
    assert report["policies"]["parity"]["sources"]["default"] > 0
    assert all(each["errors"] == 0 for each in report["policies"].values())


def test_simulate_has_several_backups(parm_here: Here, tmp_path: Path) -> None:
    done = parm_here(
        "simulate", "--queries", "2000", "--policy", "adaptive", "--stand-in", "backup",
        "--backup-time", "2.5ms", "--coverage", "0.6", "--further-backups", "12.5:0.95",
        "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    (further,) = found["setting"]["further_backups"]
    assert (further["service"]["median"], further["coverage"]) == (pytest.approx(0.0125), 0.95)
    sources = found["policies"]["adaptive"]["sources"]
    assert sources["backup"] > 0
    assert sources["backup-2"] > 0


def test_simulate_has_backups_whose_answers_are_gated(parm_here: Here, tmp_path: Path) -> None:
    done = parm_here(
        "simulate", "--queries", "2000", "--policy", "adaptive", "--stand-in", "backup",
        "--backup-time", "5ms", "--coverage", "0.5", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "s.json").read_text())
    setting, sources = report["setting"], report["policies"]["adaptive"]["sources"]
    assert setting["stand_ins"] == ["backup"]
    assert setting["backup_service"]["median"] == pytest.approx(0.005)
    assert setting["coverage"] == 0.5
    assert sources["backup"] > 0
    assert "reconstruction" not in sources


def test_simulate_has_cores_that_instances_share(parm_here: Here, tmp_path: Path) -> None:
    p99 = {}
    for cores in ("6", "1"):
        done = parm_here(
            "simulate", "--queries", "2000", "--instances", "4", "--load", "0.1", "--shuffles", "0",
            "--policy", "equal-resources", "--cores", cores, "--serving", "2ms", "--json",
            tmp_path / "s.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "s.json").read_text())
        assert found["setting"]["cores"] == int(cores)
        result = found["policies"]["equal-resources"]
        assert result["p50_ms"] > 26.5  # 25 for the model, 2 for server and client
        p99[cores] = result["p99_ms"]
    assert p99["1"] > 1.5 * p99["6"]


def test_simulate_has_a_backup_for_any_policy_that_needs_one(
    parm_here: Here, tmp_path: Path
) -> None:
    done = parm_here(
        "simulate", "--queries", "500", "--policy", BACKED, "--backup-time", "5ms", "--coverage",
        "0.5", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "s.json").read_text())["policies"].values()
    assert result["sources"]["backup"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--cores 0", "--cores must be from 1 to 100000, got 0"),
        ("--serving 2ms", "--serving is computed on --cores: say how many there are"),
        ("--k 1", "--k must be from 2 to 9, got 1"),
        ("--k 10", "--k must be from 2 to 9, got 10"),
        ("--load 0", "--load must be above 0 and 3 or less, got 0"),
        ("--load 5", "--load must be above 0 and 3 or less, got 5"),
        ("--decoder none", "there is no decoder 'none'"),
        ("--policy hedging --copies 3", "--copies is no option of the policy hedging"),
        ("--deadline 0", "--deadline must be above 0, got 0"),
        ("--kill-every 0.00001", "kill_every is 1e-05 s; give 0.1 s or more"),
        ("--stand-in replica", "--stand-in is one of parity, backup, not replica"),
        ("--backup-time 5", "--backup-time needs --stand-in backup"),
        ("--further-backups 5:0.9", "--further-backups needs --stand-in backup"),
        ("--stand-in backup --further-backups 5", "takes MS:SHARE,... as 5:0.9,10:0.97"),
        ("--stand-in backup --further-backups 5:2", "shares from 0 to 1, not '5:2'"),
        ("--stand-in backup --further-backups 1:1,2:1,3:1,4:1", "names 4 besides the first"),
        ("--policy hedging --stand-in backup", "--stand-in needs --policy adaptive beside it"),
        ("--policy hedging --backup-time 5", "--backup-time needs --stand-in backup or --policy"),
        ("--policy hedging --coverage 0.5", "--coverage needs --policy"),
        ("--policy hedging --decoder subtraction", "--decoder needs --policy parity"),
        ("--policy hedging --encoder sum", "--encoder needs --policy parity"),
        ("--policy adaptive --stand-in backup --encoder sum", "--encoder needs --policy parity"),
        ("--pause 5ms", "--pause needs --pause-every beside it"),
        ("--pause 5ms --pause-every 0", "--pause needs --pause-every beside it"),
        ("--coverage -0.1", "--coverage must be from 0 to 1, got -0.1"),
        ("--arrivals absent", "cannot read the trace absent"),
        ("--arrivals absent --rate 3", "give --arrivals or --rate, not both"),
        ("--arrivals absent --load 0.5", "give --load or --arrivals, not both"),
        ("--rate 3 --load 0.5", "give --rate or --load, not both"),
        ("--service-time 20 --service-times absent", "give --service-times or --service-time"),
    ],
)
def test_mistakes_are_told_in_one_line_that_spells_options_as_typed(
    parm_here: Here, arguments: str, reason: str
) -> None:
    assert_refused(parm_here("simulate", *arguments.split(), "--queries", 100), reason)
