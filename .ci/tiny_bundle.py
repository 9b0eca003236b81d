"""Write a bundle with a linear model, which is its own parity model under sum + subtraction."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.codes import CodeSpec


def main(folder: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weights"], ["output"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "linear.onnx"
        onnx.save(model, path)
        linear = NewModel(path, network="linear")
        write_bundle(
            folder, deployed=linear, parity=[linear], code=CodeSpec("sum", "subtraction", k=2)
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
