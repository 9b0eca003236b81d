"""A gate's level is chosen, or refused, at the start; a server reports it and keeps to it."""

from pathlib import Path

import httpx
import numpy as np

from commands import Here
from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.bundle.bundle import Bundle, with_measured
from parity_models.codes import CodeSpec
from parity_models.roles import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions, Server
from parity_models.trust.gate import Calibration, GateLevel, StandIn
from parity_models.trust.gates import choose_gates, ungated

ROLES = {"deployed", "parity-0", "backup"}


def calibration(*levels: float, threshold: float = 0.0) -> Calibration:
    reached = tuple(GateLevel(level, threshold, 0.8, level) for level in levels)
    return Calibration("classes", 0.0, "scores", 1000, 0.05, reached)


def bundle(folder: Path, **calibrations: Calibration) -> Bundle:
    folder.mkdir(exist_ok=True)
    weights = np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    written = linear_bundle(
        folder, weights, [weights], CodeSpec("sum", "subtraction", 2), backup=weights
    )
    gates: dict[StandIn, Calibration] = {}
    for stand_in in ("reconstruction", "backup"):
        if stand_in in calibrations:
            gates[stand_in] = calibrations[stand_in]
    return with_measured(written, calibration=gates)


def test_without_a_word_the_highest_level_up_to_99_is_taken(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.9, 0.98, 0.995), backup=calibration(0.995))
    found = choose_gates(held, ROLES, None)
    assert {source: gate.level.level for source, gate in found.items()} == {
        Source.RECONSTRUCTION: 0.98
    }
    (note,) = ungated(held, ROLES, None)
    assert "the backup answers without a gate, as its calibration reached no level" in note
    (note,) = ungated(bundle(tmp_path, backup=calibration(0.9)), ROLES, None)
    assert note.endswith(f"calibrate it with: parm calibrate {tmp_path / 'bundle'} --inputs FILE")


def test_the_lowest_level_is_taken_that_promises_what_is_asked_for(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.9, 0.98, 0.995), backup=calibration(0.97))
    found = choose_gates(held, {"deployed", "parity-0"}, 0.985)
    assert {source: gate.level.level for source, gate in found.items()} == {
        Source.RECONSTRUCTION: 0.995
    }
    assert choose_gates(held, ROLES, 0) == {}
    assert list(ungated(held, ROLES, 0)) == []
    assert list(ungated(held, {"deployed"}, None)) == []


def test_what_cannot_be_promised_is_refused_with_the_way_out(
    tmp_path: Path, parm_here: Here
) -> None:
    held = bundle(tmp_path / "held", reconstruction=calibration(0.9))
    none = bundle(tmp_path / "none", reconstruction=calibration())
    for of, policy, agreement, said in (
        (held, "parity", 0.99, "reaches 0.9: serve with --agreement 0.9 at most"),
        (held, "parity", 99, "stands for 99 of 100"),
        (held, "parity", -0.1, "must be 0 or more and below 1"),
        (held, "hedging", 0.9, "this policy has no stand-in"),
        (held, "approximate-backup", 0.9, "has no calibration of its backup"),
        (none, "parity", 0.9, "more queries: parm calibrate"),
    ):
        done = parm_here("serve", of.path, "--policy", policy, "--agreement", agreement)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


async def test_a_server_says_the_level_and_the_coverage_of_its_gates(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.97))
    policy = PolicyChoice("parity", {"pool": "dedicated"})
    options = ServeOptions(policy=policy, port=0, instances=3, agreement=0.96, share_groups=True)
    async with Server(held, options) as server, httpx.AsyncClient(base_url=server.url) as client:
        about = (await client.get("/v2/models/model", timeout=60)).json()
    assert about["gates"] == {"reconstruction": {"agreement": 0.97, "coverage": 0.8}}
