"""The programs of the public API, as written, from a process of their own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity_models as pm
from linear_bundles import WEIGHTS, linear_bundle
from onnx_models import linear_model

pytestmark = pytest.mark.slow

PROGRAM = """
import numpy as np, parity_models as pm
rows = np.load("inputs.npy")
bundle = pm.protect("model.onnx", rows, out="bundle", minutes=2)
print(bundle.gates)                       # level, agreement, coverage of each stand-in
with pm.serve(bundle, instances=4) as server:
    result = server.predict(rows[:2])
    print(result.sources)
print(pm.simulate(bundle, rate=200, instances=8, policies=["hedging", "adaptive"]))
"""
HURRIED = ("minutes=2", "minutes=0.2")
"""A test has no two minutes, and what is found in less is worth less."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its queries."""
    made = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(1)
    linear_model(made / "model.onnx", (6,), (4,), 3 * rng.normal(size=(6, 4)).astype(np.float32))
    np.save(made / "inputs.npy", rng.normal(size=(3000, 6)).astype(np.float32))
    return made


def test_the_program_of_the_readme_protects_serves_and_simulates(folder: Path) -> None:
    program = PROGRAM.replace(*HURRIED)
    assert program != PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said in ("agreement", "coverage", "stood", "hedging", "adaptive"):
        assert said in done.stdout
    assert len(re.findall(r"Source\.\w+|model|backup|reconstruction", done.stdout)) > 2
    assert pm.open_bundle(folder / "bundle").gates


def test_a_bundle_made_from_python_is_calibrated_and_measured(folder: Path) -> None:
    model, inputs, out = str(folder / "model.onnx"), str(folder / "inputs.npy"), folder / "trained"
    coded = pm.train_parity(model, inputs, out=str(out), network="mlp", epochs=20)
    assert coded.gates["reconstruction"].levels
    assert coded.manifest.accuracy is not None
    both = pm.train_backup(coded, np.load(inputs), out=out, network="linear", epochs=20)
    assert both.gates.keys() == {"reconstruction", "backup"}
    assert pm.open_bundle(out).manifest == both.manifest
    assert "holds the best epoch" in str(both)
    assert not (folder / "trained.checkpoint").exists()
    again = pm.calibrate(str(out), inputs, agreement=(0.93,))
    assert 0.93 in [each.level for each in again.gates["backup"].levels]
    found = pm.evaluate(str(out), inputs)
    assert found.accuracy.metric == "top-1 agreement"
    assert {each.stand_in for each in found.gates} == {"reconstruction", "backup"}
    assert "A_d" in str(found)


def test_options_are_fields_by_name_or_all_at_once(folder: Path) -> None:
    wrong: dict[str, Any] = {"rte": 1.0}
    with pytest.raises(TypeError, match="unexpected keyword argument 'rte'"):
        pm.plan(**wrong)
    with pytest.raises(TypeError, match="not both"):
        pm.plan(options=pm.Goal(), rate=1.0)
    with pytest.raises(pm.UserError, match="differ must be a number, from 0 to 1; got nan"):
        pm.plan(service_time=0.02, rate=1.0, differ=float("nan"))


def test_a_comparison_says_what_part_of_a_gain_is_the_dispatch_rules() -> None:
    found = pm.simulate(
        service_time=0.02, backup_time=0.004, rate=270, instances=8, queries=3000,
        policies=["hedging", "adaptive"],
    )  # fmt: skip
    names = [each.name for each in found.policies]
    assert names == ["none", "none, latency-aware", "hedging", "adaptive"]
    by_name = {each.name: each.outcome for each in found.policies}
    assert by_name["hedging"].copied > 0 == by_name["none"].copied
    assert "comes from the dispatch rule, latency-aware" in str(found)
    assert found.scenario.instances == 8


def test_a_policy_with_instances_of_its_own_has_them_within_the_total(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path, WEIGHTS, backup=WEIGHTS)
    with pytest.raises(pm.UserError, match="give more instances="):
        pm.simulate(bundle, rate=20, instances=1, policies=["approximate-backup"], queries=1000)
    options = pm.SimulationOptions(rate=20, instances=3, queries=1000, agreement=None)
    found = pm.simulate(bundle, policies=["approximate-backup"], options=options)
    assert found.policies[-1].outcome.stood_in > 0
