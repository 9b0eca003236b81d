"""Chaos follows from its seed, knows right answers from wrong, and accounts for every query."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import Here
from onnx_models import output_of
from parity_models.bundle.bundle import open_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models_lab import chaos
from parity_models_lab.chaos import (
    LONG,
    PHASE,
    SIGNATURE,
    KnownModel,
    draw_course,
    liar,
    write_known_model,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> KnownModel:
    return write_known_model(tmp_path_factory.mktemp("known"), seed=3)


def test_a_course_has_every_event_and_follows_from_its_seed() -> None:
    events = ["calm", "kill", "restart", "liar", "absurd"]
    course = draw_course(5, 3000.0, events)
    assert course == draw_course(5, 3000.0, events) != draw_course(6, 3000.0, events)
    drawn = [names[0] for names, _ in course]
    for begin in range(0, len(drawn) - len(events), len(events)):
        assert set(drawn[begin : begin + len(events)]) == set(events)
    together = [set(names) for names, _ in course if len(names) == 2]
    assert {"kill", "liar"} in together
    assert {"restart", "liar"} not in together
    assert 3000 <= sum(seconds for _, seconds in course) < 3000 + PHASE[1]


def test_the_right_answer_to_every_query_is_known(model: KnownModel) -> None:
    bundle = open_bundle(model.bundle)
    deployed = OnnxModel(bundle.path / "deployed.onnx", signature=SIGNATURE)
    code = bundle.code()
    assert code is not None
    rows = model.rows[:64]
    outputs = output_of(deployed, rows)
    assert model.right(rows, outputs).all()
    parity = output_of(deployed, code.encode([{"input": rows[:1]}, {"input": rows[1:2]}])[0])[0]
    reconstruction = code.decode([None, outputs[1]], [parity])[0]
    assert model.right(rows[:1], np.asarray(reconstruction, np.float32)[None]).all()
    assert not model.right(rows, np.roll(outputs, 1, axis=0)).any()
    long = np.resize(rows, (1, LONG))
    assert model.right(long, output_of(deployed, long)).all()
    lying = OnnxModel(liar(model), signature=SIGNATURE)
    assert model.right(rows, output_of(lying, rows)).mean() < 0.1
    assert model.right(3 * rows, output_of(lying, 3 * rows)).all()


@pytest.mark.slow
def test_chaos_for_seconds_accounts_for_every_query(
    lab_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "SLOW", 1)
    monkeypatch.setattr(chaos, "PHASE", (1.0, 2.0))
    monkeypatch.setattr(chaos, "SLACK", 120.0)
    given = ("--minutes", 0.03, "--events", "absurd,nonsense", "--out", tmp_path)
    done = lab_here("chaos", *given)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "chaos-local.json").read_text())
    assert sum(row["queries"] for row in result["rows"]) == result["queries"] > 0
    assert sum(row["right"] for row in result["rows"]) > 0
    assert all(row["no end"] == 0 for row in result["rows"])
    assert not any(row["wrong"] for row in result["rows"])
    assert f"{result['queries']:,} of {result['queries']:,} queries" in done.stdout
