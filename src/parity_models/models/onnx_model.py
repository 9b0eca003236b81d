"""A model in ONNX Runtime: a batch of rows in, a batch of rows out."""

import re
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from parity_models.errors import ModelError
from parity_models.models.tensor import TensorSpec

MAX_MODEL_BYTES = 2**31 - 1
"""What one ONNX file can hold: protobuf goes no further."""

_DATATYPES = {
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(bool)": "BOOL",
}
_LACKED = ("is not a registered function/op", "No Op registered", "No opset import")
"""What ONNX Runtime says where it lacks an operator."""

_FATAL_ONLY = 4
_NO_FOLDER = "/dev/null/external-data"


class OnnxModel:
    """An ONNX file with one input and one output whose first axis is a free batch axis.

    `model` is the file's path or its content. Only the file itself is read: weights kept in
    further files are refused, since nothing vouches for those. `threads` compute within one
    call; `spinning` lets them burn their core while they wait, which speeds up a process that
    has the machine to itself and ruins the others' speed where it has not. Raises ModelError
    for a file that cannot be read or is not such a model.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, spinning: bool = False) -> None:
        content = model if isinstance(model, bytes) else read_model(model)
        subject = "it" if isinstance(model, bytes) else str(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _NO_FOLDER
        )
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise ModelError(f"{subject} {_why(error)}") from error
        self.input = _spec(subject, "input", self._session.get_inputs())
        self.output = _spec(subject, "output", self._session.get_outputs())
        self._feed = self.input.name
        self._fetch = [self.output.name]

    def __call__(
        self, batch: NDArray[Any], options: onnxruntime.RunOptions | None = None
    ) -> NDArray[Any]:
        """(n, *input.shape) to (n, *output.shape), for any n ≥ 1.

        Another thread can end the call by setting `options.terminate`. Raises what ONNX Runtime
        raises, for which there is no closer class than Exception.
        """
        result: NDArray[Any] = self._session.run(self._fetch, {self._feed: batch}, options)[0]
        return result


def read_model(path: Path) -> bytes:
    """The content of an ONNX file, or ModelError."""
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path} has {size} bytes; an ONNX file has {MAX_MODEL_BYTES} at most")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _why(error: Exception) -> str:
    text = " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())
    if "xternal data" in text:
        return (
            "keeps its weights in another file; export it with the weights inside "
            "(torch.onnx.export(..., external_data=False))"
        )
    if any(sign in text for sign in _LACKED):
        return f"uses an operator that ONNX Runtime lacks ({text}); export it without that operator"
    if newest := re.search(r"official support for domain (\S+) is till opset (\d+)", text):
        domain, opset = newest.groups()
        return (
            f"is of an opset of {domain} newer than {opset}, the newest that ONNX Runtime "
            f"{onnxruntime.__version__} knows; export it for that one or an older"
        )
    return f"cannot be loaded by ONNX Runtime ({text}); is it a complete ONNX file?"


def _spec(subject: str, role: str, nodes: list[Any]) -> TensorSpec:
    if len(nodes) != 1:
        raise ModelError(
            f"{subject} has {len(nodes)} {role}s ({', '.join(node.name for node in nodes)}); "
            "export a model with one input and one output"
        )
    node = nodes[0]
    if node.type not in _DATATYPES:
        raise ModelError(f"{subject} has {role} {node.name!r} of {node.type}, not of numbers")
    if not node.shape or isinstance(node.shape[0], int):
        raise ModelError(
            f"{subject} has {role} {node.name!r} of shape {node.shape}, without a free batch axis "
            "in front; export it with a dynamic first axis (torch.onnx.export(dynamic_shapes=...))"
        )
    shape = node.shape[1:]
    if not all(isinstance(axis, int) and axis > 0 for axis in shape):
        raise ModelError(
            f"{subject} has {role} {node.name!r} of shape {node.shape}; only the batch axis may "
            "be free, export it with the others fixed"
        )
    try:
        return TensorSpec(node.name, _DATATYPES[node.type], tuple(shape))
    except ValueError as error:
        raise ModelError(
            f"{subject} has {role} {node.name!r} that is too large: {error}"
        ) from error
