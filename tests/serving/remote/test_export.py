"""parm export writes what Triton and MLServer load: names, shapes and files."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig

from commands import Here
from onnx_models import linear_model
from parity_models.errors import UserError
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.serving.remote.export import Format, export_repository
from served import INPUTS, OUTPUTS, write_linear_bundle

NAMES = {"model": "deployed", "model-parity-0": "parity-0", "model-backup": "backup"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_linear_bundle(tmp_path, backed=True)


def test_triton_s_repository_has_a_config_and_a_version(
    bundle: Path, tmp_path: Path, parm_here: Here
) -> None:
    out = tmp_path / "repository"
    assert not parm_here("export", bundle, "--format", "triton", "--out", out).returncode
    assert {folder.name for folder in out.iterdir()} == NAMES.keys()
    for name, role in NAMES.items():
        config = text_format.Parse((out / name / "config.pbtxt").read_text(), ModelConfig())
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size > 1
        assert [group.count for group in config.instance_group] == [1]
        assert config.version_policy.HasField("all")
        for tensors, of, size in [
            (config.input, "input", INPUTS),
            (config.output, "output", OUTPUTS),
        ]:
            (tensor,) = tensors
            assert (tensor.name, tensor.data_type, list(tensor.dims)) == (of, TYPE_FP32, [size])
        onnx = (out / name / "1" / "model.onnx").read_bytes()
        assert onnx == (bundle / f"{role}.onnx").read_bytes()


def test_mlserver_s_repository_has_settings_and_a_runtime(
    bundle: Path, tmp_path: Path, parm_here: Here
) -> None:
    out = tmp_path / "repository"
    assert not parm_here("export", bundle, "--format", "mlserver", "--out", out).returncode
    assert {folder.name for folder in out.iterdir()} == NAMES.keys()
    for name, role in NAMES.items():
        settings = json.loads((out / name / "model-settings.json").read_text())
        assert settings["name"] == name
        assert settings["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, INPUTS]}]
        module, kind = settings["implementation"].split(".")
        assert f"class {kind}(MLModel)" in (out / name / f"{module}.py").read_text()
        onnx = (out / name / settings["parameters"]["uri"]).read_bytes()
        assert onnx == (bundle / f"{role}.onnx").read_bytes()


@pytest.mark.parametrize("format", list(Format))
def test_what_cannot_be_written_is_refused(bundle: Path, tmp_path: Path, format: Format) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(UserError, match="is there already"):
        export_repository(opened, format, tmp_path)
    with pytest.raises(UserError, match="cannot be called"):
        export_repository(opened, format, tmp_path / "repository", "../model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export_repository(opened, format, tmp_path / "file" / "repository")
    with pytest.raises(UserError, match="cannot write"):
        export_repository(opened, format, tmp_path / "new" / "repository", "m" * 250)
    assert not list((tmp_path / "new").iterdir())


def test_triton_has_no_rows_of_single_values(tmp_path: Path) -> None:
    linear_model(tmp_path / "m.onnx", (3,), ())
    model = NewModel(tmp_path / "m.onnx", "m")
    bundle = write_bundle(tmp_path / "single", deployed=model, parity=[], code=None)
    with pytest.raises(UserError, match="single values"):
        export_repository(bundle, Format.TRITON, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
