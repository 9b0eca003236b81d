"""An ONNX file of the user's, made into a deployed model: whole, with a free batch axis.

Needs the package onnx; serving does without, since bundles hold models that went through here.
"""

from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper, numpy_helper

from parity_models.errors import ModelError
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel, open_session, read_model
from parity_models.models.onnx_signature import declared
from parity_models.models.signature import Signature
from parity_models.models.tensor import tensors_in

BATCH = "batch"
TRIED = 3
"""Rows that a model whose batch axis was freed has to predict as it did one by one."""


def read_deployed(path: Path) -> bytes:
    """The content of the ONNX file at `path`, as one that can be deployed.

    Weights in further files beside it are taken in, and a batch axis fixed to 1 is freed where
    that changes no prediction. Raises ModelError for a file that is not ONNX, is incomplete,
    does not run, or is not a model with one float32 input and one float32 output.
    """
    content = with_weights(path, read_model(path))
    try:
        content = _with_free_batch(content)
        check_deployable(OnnxModel(content))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return content


def is_plain(path: Path) -> bool:
    """Has the model at `path` one float32 input of fixed shape, as far as the file says, and one
    output? What cannot be read counts as one that has."""
    try:
        inputs, outputs = declared(open_session(with_weights(path, read_model(path))))
    except ModelError:
        return True
    fixed = all(isinstance(size, int) for each in inputs for size in each.shape[1:])
    return len(inputs) == len(outputs) == 1 and fixed and inputs[0].datatype == "FP32"


def check_deployable(model: OnnxModel) -> None:
    """Raise ModelError unless the model has one input and one output, both float32."""
    signature = model.signature
    for role, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        if len(tensors) > 1:
            raise ModelError(
                f"it has {len(tensors)} {role}s ({', '.join(each.name for each in tensors)}), and "
                "stand-ins are trained for one; serve it as it is (parm bundle), or export a model "
                f"with one {role}"
            )
        if tensors[0].datatype != "FP32":
            raise ModelError(
                f"its {role} {tensors[0].name!r} is {tensors[0].datatype}; parity models compute "
                "with float32 queries and predictions, so export the model with those"
            )


def with_weights(path: Path, content: bytes) -> bytes:
    """The content of the ONNX file at `path` with all weights in it. Raises ModelError."""
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
    if not _is_fixed_to_one(onnx.load_model_from_string(content)):
        return content
    freed = free_batch(content)
    if freed is None:
        raise ModelError(
            "its batch axis is fixed to 1 and batches do not go through it; export it with a "
            "dynamic first axis (torch.onnx.export(dynamic_shapes=...))"
        )
    return freed


def free_batch(content: bytes, signature: Signature | None = None) -> bytes | None:
    """A model whose batch axis is fixed to 1, with a free one; None if that changes predictions.

    `signature` is its signature, where the file does not say all of it.
    """
    model = onnx.load_model_from_string(content)
    for value in _tensors(model):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]
    _free_reshapes(model.graph, {tensor.name: tensor for tensor in model.graph.initializer})
    freed: bytes = model.SerializeToString()
    return freed if _predict_alike(content, freed, signature) else None


def _tensors(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs and outputs that have axes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        value
        for value in (*model.graph.input, *model.graph.output)
        if value.name not in weights and value.type.tensor_type.shape.dim
    ]


def _is_fixed_to_one(model: onnx.ModelProto) -> bool:
    tensors = _tensors(model)
    return bool(tensors) and tensors[0].type.tensor_type.shape.dim[0].dim_value == 1


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


def _predict_alike(fixed: bytes, freed: bytes, signature: Signature | None) -> bool:
    """Does the freed model predict rows together as the fixed one does one by one?"""
    if signature is not None:
        signature = msgspec.structs.replace(signature, batch=0)
    batch = OnnxModel(freed, signature=signature)
    alone = OnnxModel(fixed, signature=msgspec.structs.replace(batch.signature, batch=1))
    rows = batch.signature.largest.input.draw(np.random.default_rng(0), TRIED)
    try:
        pairs = list(zip(tensors_in(batch(rows)), tensors_in(alone(rows)), strict=True))
    except Exception:  # ONNX Runtime's errors share no base class but this
        return False
    return all(
        one.shape == other.shape and np.allclose(one, other, 1e-3, 1e-4, equal_nan=True)
        for one, other in pairs
    )
