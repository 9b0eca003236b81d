"""Chaos: what it draws depends on its seed alone; quick runs against real servers."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from prometheus_client import generate_latest

from commands import Here, assert_refused
from onnx_models import output_of
from parity_models.models.bundle import open_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.serving.metrics import Metrics
from parity_models_lab.chaos.events import EVENTS, draw_course
from parity_models_lab.chaos.known_model import (
    KnownModel,
    flipped,
    other_weights,
    write_known_model,
)
from parity_models_lab.chaos.ledger import Kind
from parity_models_lab.chaos.server import instances_up, read_metrics
from parity_models_lab.chaos.traffic import Mix, draw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> KnownModel:
    return write_known_model(tmp_path_factory.mktemp("known"), seed=3)


def test_a_course_has_every_event_before_one_comes_again_and_follows_from_its_seed() -> None:
    course = draw_course(5, 9000.0)
    assert course == draw_course(5, 9000.0) != draw_course(6, 9000.0)
    drawn = [phase.events[-1] for phase in course]
    for begin in range(0, len(drawn) - len(EVENTS), len(EVENTS)):
        assert set(drawn[begin : begin + len(EVENTS)]) == EVENTS.keys()
    assert any(len(phase.events) == 2 for phase in course)
    assert not any({"replace", "delete"} <= set(phase.events) for phase in course)
    assert 9000 <= sum(phase.seconds + 1 for phase in course) < 9010


def test_requests_follow_from_seed_and_number_alone(model: KnownModel) -> None:
    mix = Mix(absurd=0.2, nonsense=0.2, poison=0.1, impatient=0.2)
    drawn = [draw(number, 7, mix, model, 2.0) for number in range(2000)]
    again = [draw(number, 7, mix, model, 2.0) for number in range(50)]
    assert list(map(repr, again)) == list(map(repr, drawn[:50]))
    shares = Counter(request.kind for request in drawn)
    assert shares[Kind.HONEST] / 2000 == pytest.approx(0.3, abs=0.05)
    assert shares[Kind.POISON] / 2000 == pytest.approx(0.1, abs=0.03)


def test_the_right_answer_to_every_query_is_known(model: KnownModel) -> None:
    bundle = open_bundle(model.bundle)
    deployed = OnnxModel(bundle.deployed_path)
    code = bundle.code()
    assert code is not None
    rows = model.rows[:64]
    outputs = output_of(deployed, rows)
    assert model.right(rows, outputs).all()
    parity = output_of(deployed, code.encode([{"input": rows[:1]}, {"input": rows[1:2]}])[0])[0]
    reconstruction = code.decode([None, outputs[1]], [parity])[0]
    assert model.right(rows[:1], np.asarray(reconstruction, np.float32)[None]).all()
    assert not model.right(rows, np.roll(outputs, 1, axis=0)).any()


def test_lies_are_told_apart_from_right_answers(model: KnownModel) -> None:
    rows = model.rows
    liar = output_of(OnnxModel(other_weights(3)), rows)
    assert model.right(rows, liar).mean() < 0.01
    rng = Random(1)
    for _ in range(50):
        outputs = output_of(OnnxModel(flipped(model, rng)), rows)
        assert model.right(rows, outputs).mean() < 0.9


def test_unknown_events_and_engines_are_refused(lab_here: Here, tmp_path: Path) -> None:
    outcome = lab_here("chaos", "--events", "kill,rain", "--out", tmp_path)
    assert_refused(outcome, "there is no event 'rain'; there are calm, kill")
    outcome = lab_here("chaos", "--engine", "cloud", "--out", tmp_path)
    assert_refused(outcome, "is not one of 'local', 'ray'")


def test_chaos_for_seconds_loses_no_query(lab_here: Here, tmp_path: Path) -> None:
    done = lab_here("chaos", "--quick", "--out", tmp_path)
    result = json.loads((tmp_path / "chaos-local.json").read_text())
    assert result["queries"] > 500
    assert sum(row["queries"] for row in result["rows"]) == result["queries"], result["failures"]
    assert sum(row["no end"] for row in result["rows"]) == 0, result["failures"]
    assert (done.returncode == 0) == (not result["failures"])


def test_overload_of_seconds_is_measured(lab_here: Here, tmp_path: Path) -> None:
    done = lab_here("overload", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "overload-local.json").read_text())["rows"]:
        assert row["capacity"] > 20
        assert 0 < sum(row["errors"].values()) < row["offered"]


def test_instances_are_counted_by_the_metrics_as_servers_write_them() -> None:
    metrics = Metrics()
    metrics.read("parm_instances_up", "Up.", lambda: {"deployed": 3, "parity-0": 1})
    text = generate_latest(metrics.registry).decode()
    assert instances_up(read_metrics(text)) == 3
