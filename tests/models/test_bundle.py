"""A bundle opens as it was written, and is written whole or not at all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from onnx_models import output_of
from parity_models.errors import BundleError
from parity_models.models.bundle import (
    Bundle,
    InferenceTimes,
    NewModel,
    open_bundle,
    with_accuracy,
    with_calibration,
    write_bundle,
)
from parity_models.models.gate import Calibration
from parity_models.models.onnx_model import OnnxModel
from whole_bundle import ACCURACY, CODE, FILES, TRAINING, tamper


def test_a_bundle_opens_as_it_was_written(original: Bundle) -> None:
    opened = open_bundle(str(original.path))
    assert opened == original
    assert opened.manifest.name == "clothes"
    assert opened.manifest.deployed_training == TRAINING
    assert opened.manifest.accuracy == ACCURACY
    assert opened.manifest.versions.keys() >= {"parity-models", "onnxruntime", "python"}
    code = opened.code()
    assert code is not None
    assert (code.spec, code.query_shape, code.output_shape) == (CODE, (4,), (3,))
    assert {path.name for path in original.path.iterdir()} == set(FILES)


AT_ONCE = """
import sys, threading
from parity_models.models.bundle import open_bundle

sys.setswitchinterval(1e-6)
together = threading.Barrier(8)


def open_it():
    together.wait()
    open_bundle(sys.argv[1])


threads = [threading.Thread(target=open_it) for _ in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
"""


@pytest.mark.slow
def test_the_first_bundles_of_a_process_may_be_opened_by_several_threads_at_once(
    original: Bundle,
) -> None:
    for _ in range(3):  # what one thread does to another is up to chance
        command = [sys.executable, "-c", AT_ONCE, str(original.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_models_of_a_bundle_run_batches_of_any_size(original: Bundle) -> None:
    deployed = OnnxModel(original.deployed_path)
    (parity,) = [OnnxModel(path, threads=2) for path in original.parity_paths]
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 4)).astype(np.float32)
    together = output_of(deployed, rows)
    assert together.shape == (9, 3)
    np.testing.assert_allclose(together[2:3], output_of(deployed, rows[2:3]), rtol=1e-6)
    assert output_of(parity, rng.normal(size=(5, 8)).astype(np.float32)).shape == (5, 2, 3)


def test_a_bundle_of_only_a_deployed_model_has_no_code(models: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", deployed=NewModel(models / "deployed.onnx", "linear"))
    opened = open_bundle(tmp_path / "b")
    assert opened.code() is None
    assert opened.parity_paths == ()
    assert not opened.backup_paths
    assert opened.manifest.name == "model"


def test_a_manifest_from_before_there_were_backups_opens(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["backups"], content["backup_trainings"]
        del content["accuracy"]["backup_accuracies"]

    tamper(bundle, change)
    manifest = open_bundle(bundle).manifest
    assert not manifest.backups
    assert manifest.accuracy == ACCURACY


def _one_backup(content: dict[str, Any]) -> None:
    """As in formats 1 and 2."""
    (content["backup"],) = content.pop("backups")
    (content["backup_training"],) = content.pop("backup_trainings")
    del content["accuracy"]["backup_accuracies"]
    content["accuracy"]["backup_accuracy"] = None


def test_a_bundle_of_format_2_opens_with_its_one_backup(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["format_version"] = 2
        _one_backup(content)
        content["accuracy"]["backup_accuracy"] = 0.7
        content["inference_times"] = {"deployed": 2.0, "parity": 2.0, "backup": 0.5}

    before = open_bundle(bundle).manifest
    tamper(bundle, change)
    found = open_bundle(bundle).manifest
    assert (found.backups, found.backup_trainings) == (before.backups, (TRAINING,))
    assert found.accuracy is not None
    assert found.accuracy.backup_accuracies == (0.7,)
    assert found.inference_times == InferenceTimes(2.0, 2.0, (0.5,))


def test_a_bundle_has_up_to_four_backups_in_their_order(models: Path, tmp_path: Path) -> None:
    model = NewModel(models / "deployed.onnx", "linear")
    backups = [replace(model, network=f"{number}") for number in range(5)]
    write_bundle(tmp_path / "b", deployed=model, backups=backups[:4])
    opened = open_bundle(tmp_path / "b")
    assert [(role, each.network) for role, each in opened.manifest.backup_roles.items()] == [
        ("backup", "0"),
        ("backup-2", "1"),
        ("backup-3", "2"),
        ("backup-4", "3"),
    ]
    assert [path.name for path in opened.backup_paths][:2] == ["backup.onnx", "backup-2.onnx"]
    with pytest.raises(BundleError, match="a bundle has 4 backups at most; got 5"):
        write_bundle(tmp_path / "five", deployed=model, backups=backups)
    with pytest.raises(BundleError, match="names 2 backups and the times of 1"):
        write_bundle(
            tmp_path / "times",
            deployed=model,
            backups=backups[:2],
            inference_times=InferenceTimes(1.0, None, (0.1,)),
        )


def test_a_bundle_of_format_1_opens_as_it_did(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["format_version"] = 1
        del content["imitated"]
        _one_backup(content)
        models = [content["deployed"], content["backup"], *content["parity"]]
        for model in [*models, *content["coders"].values()]:
            signature = model.pop("signature")
            for role in ("input", "output"):
                (tensor,) = signature[f"{role}s"]
                model[role] = {key: tensor[key] for key in ("name", "datatype", "shape")}

    now = open_bundle(bundle).manifest
    tamper(bundle, change)
    assert open_bundle(bundle).manifest == now


def test_a_manifest_from_before_there_were_envelopes_opens_and_is_not_isolated(
    bundle: Path,
) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["envelope"], content["parity"][0]["slotwise"]

    tamper(bundle, change)
    opened = open_bundle(bundle)
    assert not opened.isolated
    assert opened.envelope() is None


def test_a_bundle_replaces_a_bundle_and_leaves_nothing_beside_it(
    bundle: Path, models: Path
) -> None:
    written = write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    assert open_bundle(bundle) == written
    assert {path.name for path in bundle.iterdir()} == {"deployed.onnx", "manifest.json"}
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_bundle_that_cannot_be_made_leaves_the_old_one_whole(
    bundle: Path, models: Path, original: Bundle
) -> None:
    deployed = NewModel(models / "deployed.onnx", "linear")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parity": [deployed], "code": CODE}, r"parity-0.onnx has input .* needs FP32 \[8\]"),
        ({"parity": [deployed]}, "names 1 parity models where its code needs 0"),
        (
            {"backups": [NewModel(models / "parity.onnx", "large")]},
            r"backup.onnx has input .* needs",
        ),
        ({"name": "a/b"}, r"schema: .*\$.name"),
        ({"files": {"../escape": b""}}, r"schema: .*\$.files"),
        ({"files": {"deployed.onnx": b""}}, "two files called deployed.onnx"),
        ({"files": {"manifest.json": b""}}, "two files called manifest.json"),
    ]
    for arguments, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(bundle, deployed=deployed, **arguments)
        assert open_bundle(bundle).manifest == original.manifest
        assert list(bundle.parent.iterdir()) == [bundle]


def test_a_folder_with_anything_else_in_it_is_not_replaced(models: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    deployed = NewModel(models / "deployed.onnx", "linear")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(BundleError, match="is not a bundle that could be replaced"):
            write_bundle(path, deployed=deployed)
    with pytest.raises(BundleError, match="cannot write the bundle"):
        write_bundle(tmp_path / "thesis.tex" / "bundle", deployed=deployed)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", deployed=deployed).path == tmp_path / "empty"


def test_accuracy_is_put_into_the_manifest_in_one_step(bundle: Path) -> None:
    accuracy = msgspec.structs.replace(ACCURACY, degraded_accuracy=0.85)
    updated = with_accuracy(open_bundle(bundle), accuracy)
    assert updated.manifest.accuracy == accuracy
    assert open_bundle(bundle) == updated
    assert {path.name for path in bundle.iterdir()} == set(FILES)


def test_a_gate_that_does_not_fit_the_predictions_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    boxes = Calibration("boxes", 0.5, "none", 10, 0.05)
    with_calibration(opened, {"reconstruction": boxes})
    with pytest.raises(BundleError, match="the gate of the reconstruction is one of boxes"):
        open_bundle(bundle)


def test_accuracy_of_a_bundle_that_is_no_longer_there_is_refused(
    bundle: Path, models: Path
) -> None:
    before = open_bundle(bundle)
    write_bundle(bundle, deployed=NewModel(models / "deployed.onnx", "linear"))
    with pytest.raises(BundleError, match="was replaced in the meantime"):
        with_accuracy(before, ACCURACY)
    assert open_bundle(bundle).manifest.accuracy is None
