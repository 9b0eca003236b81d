"""An ONNX file of the user's, made into a deployed model: whole, with a free batch axis.

Needs the package onnx; serving does without, since bundles hold models that went through here.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper, numpy_helper

from parity_models.errors import ModelError
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel, read_model

BATCH = "batch"
TRIED = 3
"""Rows that a model whose batch axis was freed has to predict as it did one by one."""


def read_deployed(path: Path) -> bytes:
    """The content of the ONNX file at `path`, as one that can be deployed.

    Weights in further files beside it are taken in, and a batch axis fixed to 1 is freed where
    that changes no prediction. Raises ModelError for a file that is not ONNX, is incomplete,
    does not run, or is not a model with one float32 input and one float32 output.
    """
    content = _with_weights(path, read_model(path))
    try:
        content = _with_free_batch(content)
        check_deployable(OnnxModel(content))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return content


def check_deployable(model: OnnxModel) -> None:
    """Raise ModelError unless the model's input and output are float32."""
    for role, spec in (("input", model.input), ("output", model.output)):
        if spec.datatype != "FP32":
            raise ModelError(
                f"its {role} {spec.name!r} is {spec.datatype}; parity models compute with "
                "float32 queries and predictions, so export the model with those"
            )


def _with_weights(path: Path, content: bytes) -> bytes:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX file, or is incomplete; export it again"
        ) from error
    if not any(map(external_data_helper.uses_external_data, model.graph.initializer)):
        return content
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        whole: bytes = model.SerializeToString()
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"the weights of {path} are in another file that cannot be read ({why}); copy that "
            "file beside it, or export with torch.onnx.export(..., external_data=False)"
        ) from error
    except EncodeError as error:
        raise ModelError(
            f"{path} has more weights than one file holds; {MAX_MODEL_BYTES} bytes are the most"
        ) from error
    return whole


def _with_free_batch(content: bytes) -> bytes:
    """`content`, or if its batch axis is fixed to 1 the same model with a free one."""
    model = onnx.load_model_from_string(content)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = [
        value
        for value in (*model.graph.input, *model.graph.output)
        if value.name not in weights and value.type.tensor_type.shape.dim
    ]
    if not tensors or tensors[0].type.tensor_type.shape.dim[0].dim_value != 1:
        return content
    for value in tensors:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]
    _free_reshapes(model.graph, weights)
    freed: bytes = model.SerializeToString()
    if not _predict_alike(content, freed):
        raise ModelError(
            "its batch axis is fixed to 1 and batches do not go through it; export it with a "
            "dynamic first axis (torch.onnx.export(dynamic_shapes=...))"
        )
    return freed


def _free_reshapes(graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]) -> None:
    """Let reshapes to a fixed batch of 1 keep the batch they get."""
    constants = {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        shape = {**constants, **weights}.get(node.input[1])
        if shape is None:
            continue
        sizes = numpy_helper.to_array(shape).copy()
        if sizes.ndim == 1 and sizes.size and sizes[0] == 1:
            sizes[0] = 0 if -1 in sizes[1:] else -1  # 0 stands for the axis as it comes in
            shape.CopyFrom(numpy_helper.from_array(sizes, shape.name))


def _predict_alike(fixed: bytes, freed: bytes) -> bool:
    """Does the freed model predict rows together as the fixed one does one by one?"""
    batch = OnnxModel(freed)
    rows = np.random.default_rng(0).random((TRIED, *batch.input.shape))
    rows = rows.astype(batch.input.dtype)
    try:
        together = batch(rows)
        single = onnxruntime.InferenceSession(fixed, providers=["CPUExecutionProvider"])
        alone = np.concatenate([single.run(None, {batch.input.name: row[None]})[0] for row in rows])
    except Exception:  # ONNX Runtime's errors share no base class but this
        return False
    return together.shape == alone.shape and np.allclose(together, alone, 1e-3, 1e-4)
