"""parm export writes what Triton loads: names, shapes and files."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig

from commands import Here
from onnx_models import Described, graph_model, linear_model
from parity_models.bundle.bundle import NewModel, open_bundle, write_bundle
from parity_models.errors import UserError
from parity_models.serving.remote.export import export_repository
from served import INPUTS, OUTPUTS, write_linear_bundle

NAMES = {"model": "deployed", "model-parity-0": "parity-0", "model-backup": "backup"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_linear_bundle(tmp_path, backed=True)


def test_a_repository_has_each_model(bundle: Path, tmp_path: Path, parm_here: Here) -> None:
    out = tmp_path / "repository"
    assert not parm_here("export", bundle, "--out", out).returncode
    assert {folder.name for folder in out.iterdir()} == NAMES.keys()
    for name, role in NAMES.items():
        model = (out / name / "1" / "model.onnx").read_bytes()
        assert model == (bundle / f"{role}.onnx").read_bytes()
        config = text_format.Parse((out / name / "config.pbtxt").read_text(), ModelConfig())
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size > 1
        assert [group.count for group in config.instance_group] == [1]
        assert config.version_policy.HasField("all")
        for (tensor,), of, size in (
            (config.input, "input", INPUTS),
            (config.output, "output", OUTPUTS),
        ):
            assert (tensor.name, tensor.data_type, list(tensor.dims)) == (of, TYPE_FP32, [size])


def test_a_fixed_batch_axis_is_an_axis_of_the_model(tmp_path: Path) -> None:
    fixed: Described = (TensorProto.FLOAT, [8, 2])
    identity = helper.make_node("Identity", ["x"], ["y"])
    model = NewModel(graph_model([identity], {"x": fixed}, {"y": fixed}), "m")
    export_repository(write_bundle(tmp_path / "bundle", deployed=model), tmp_path / "repository")
    config = (tmp_path / "repository" / "model" / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in config
    assert config.count("dims: [8, 2]") == 2


def test_unusable_destination_is_refused(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(UserError, match="exists already"):
        export_repository(opened, tmp_path)
    with pytest.raises(UserError, match="cannot be called"):
        export_repository(opened, tmp_path / "repository", "../model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export_repository(opened, tmp_path / "file" / "repository")
    with pytest.raises(UserError, match="cannot write"):
        export_repository(opened, tmp_path / "new" / "repository", "m" * 250)
    assert not list((tmp_path / "new").iterdir())


def test_triton_has_no_rows_of_single_values(tmp_path: Path) -> None:
    linear_model(tmp_path / "m.onnx", (3,), ())
    model = NewModel(tmp_path / "m.onnx", "m")
    bundle = write_bundle(tmp_path / "single", deployed=model, parity=[], code=None)
    with pytest.raises(UserError, match="single values"):
        export_repository(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
