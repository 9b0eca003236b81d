"""A gate's level is chosen at the start; a server reports it, and when a closed gate may open."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models import CodeSpec, PolicyChoice, ServeOptions, Server, Source, UserError
from parity_models.bundle.bundle import Bundle, with_measured
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import (
    DEFAULT,
    NOTHING,
    AnsweredClass,
    Calibration,
    GateLevel,
    RequestedLevel,
)
from parity_models.trust.gates import choose_gates, closed

ROLES = {"deployed", "parity-0", "backup"}


CURVE = DoubtCurve((0.0, 1.0), (0.1, 0.01), 400, ((200, 20, 20.0), (200, 0, 2.0)))
"""Of outputs that are sure, all of 200 agreed."""


def calibration(*levels: float, threshold: float = 0.0) -> Calibration:
    reached = tuple(GateLevel(level, threshold, 0.8, level) for level in levels)
    return Calibration("classes", 0.0, "scores", 400, 0.05, reached, curve=CURVE)


def bundle(folder: Path, **calibrations: Calibration) -> Bundle:
    folder.mkdir(exist_ok=True)
    weights = np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    code = CodeSpec("sum", "subtraction", 2)
    written = linear_bundle(folder, weights, [weights], code, backup=weights)
    gates: Any = calibrations  # by stand-ins
    return with_measured(written, calibration=gates)


def test_without_a_word_the_highest_level_up_to_99_is_taken(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.9, 0.98, 0.995), backup=calibration(0.995))
    found = choose_gates(held.gates, ROLES)
    levels = {source: (gate.level, gate.coverage) for source, gate in found.items()}
    assert levels == {Source.RECONSTRUCTION: (0.98, 0.8), Source.BACKUP: (0.99, 0.0)}
    (note,) = closed(found)
    assert note.startswith("the gate of the backup starts closed, as 400 queries of calibration")
    chosen = choose_gates(held.gates, ROLES, budgeted=True)
    assert {gate.level for gate in chosen.values()} == {None}


def test_the_lowest_level_is_taken_that_promises_what_is_asked_for(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.9, 0.98, 0.995), backup=calibration(0.97))
    found = choose_gates(held.gates, ROLES, 0.985)
    assert {source: gate.level for source, gate in found.items()} == dict.fromkeys(found, 0.985)
    shown = found[Source.RECONSTRUCTION].shown
    assert shown is not None
    assert shown.level == 0.995
    assert found[Source.RECONSTRUCTION].starts == {None: (0.985, 0.0)}
    assert found[Source.BACKUP].starts == {None: (0.985, NOTHING)}
    for none in (None, 0):
        assert {gate.level for gate in choose_gates(held.gates, ROLES, none).values()} == {None}
    assert choose_gates(held.gates, {"deployed"}) == {}


def test_gate_without_evidence_starts_closed_and_may_open_later(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.9))
    found = choose_gates(held.gates, ROLES, 0.98)
    assert {gate.coverage for gate in found.values()} == {0.0}
    some, none = closed(found)
    assert "do not show an agreement of 0.98; it may open after some" in some
    assert none == (
        "the gate of the backup starts closed, as it is not calibrated; it opens once enough "
        "outputs were compared with the model's to show an agreement of 0.98"
    )
    wrong = DoubtCurve((0.0, 1.0), (0.8, 0.5), 400, ((200, 160, 160.0), (200, 99, 100.0)))
    known = msgspec.structs.replace(calibration(), curve=wrong)
    (note,) = closed(choose_gates(bundle(tmp_path, backup=known).gates, {"backup"}, 0.98))
    assert note.endswith("nor do they tell when it may open: calibrate with more queries")


def test_only_a_stand_in_of_some_classes_keeps_its_gate_with_a_budget(tmp_path: Path) -> None:
    only = (AnsweredClass(1, "spam", 0.995), AnsweredClass(2, "news"))
    known = msgspec.structs.replace(calibration(), answer_only=only)
    held = bundle(tmp_path, backup=known)
    levels: list[tuple[RequestedLevel, float]] = [(DEFAULT, 0.99), (0.9, 0.9)]
    for agreement, level in levels:
        (gate,) = choose_gates(held.gates, {"backup"}, agreement, budgeted=True).values()
        assert gate.classes == {"spam": 0.995, "news": level}
        assert gate.starts == {1: (0.995, NOTHING), 2: (level, NOTHING)}
    for none in (None, 0):
        with pytest.raises(UserError, match="without a gate it would answer every class"):
            choose_gates(held.gates, {"backup"}, none)


async def test_a_server_says_the_level_and_the_coverage_of_its_gates(tmp_path: Path) -> None:
    held = bundle(tmp_path, reconstruction=calibration(0.97))
    policy = PolicyChoice("parity", {"pool": "dedicated"})
    options = ServeOptions(policy=policy, port=0, instances=3, agreement=0.96, share_groups=True)
    async with Server(held, options) as server, httpx.AsyncClient(base_url=server.url) as client:
        about = (await client.get("/v2/models/model", timeout=60)).json()
    assert about["gates"] == {"reconstruction": {"agreement": 0.96, "coverage": 0.8}}
