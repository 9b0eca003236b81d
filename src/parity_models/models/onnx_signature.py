"""The signature of an ONNX file, as far as the file says it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnxruntime

from parity_models.errors import ModelError
from parity_models.models.signature import Signature, Tensor

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


class Declared(NamedTuple):
    """An input or output as the file declares it; of `shape` whole numbers are sizes, names are
    free axes, and None is a free axis without a name. The first is the batch axis."""

    role: str
    name: str
    datatype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.role} {self.name!r} of shape {list(self.shape)}"


def declared(session: onnxruntime.InferenceSession) -> tuple[list[Declared], list[Declared]]:
    """The inputs and the outputs of the model in `session`. Raises ModelError for datatypes that
    cannot be served."""
    return (
        [_declared("input", node) for node in session.get_inputs()],
        [_declared("output", node) for node in session.get_outputs()],
    )


def fixed_signature(session: onnxruntime.InferenceSession) -> Signature:
    """The signature of a model that has a free batch axis in front and no other free axis.

    Raises ModelError for others.
    """
    inputs, outputs = declared(session)
    return make_signature(list(map(_fixed, inputs)), list(map(_fixed, outputs)))


def _fixed(tensor: Declared) -> Tensor:
    """A row of this tensor, all of whose axes but the first have to be of fixed size."""
    if not tensor.shape or isinstance(tensor.shape[0], int):
        raise ModelError(
            f"has {tensor}, without a free batch axis in front; export it with a dynamic first "
            "axis (torch.onnx.export(dynamic_shapes=...))"
        )
    row = tuple(axis for axis in tensor.shape[1:] if isinstance(axis, int) and axis > 0)
    if len(row) < len(tensor.shape) - 1:
        raise ModelError(
            f"has {tensor}; only the batch axis may be free here, so export it with the others "
            "fixed, bound them in a bundle (parm bundle --axis NAME=SIZE), or give queries that "
            "bound them with --inputs"
        )
    try:
        return Tensor(tensor.name, tensor.datatype, row)
    except ValueError as error:
        raise ModelError(f"has a tensor that is too large: {error}") from error


def make_signature(inputs: Sequence[Tensor], outputs: Sequence[Tensor], **more: Any) -> Signature:
    """The signature of these tensors; ModelError where there cannot be such a one."""
    try:
        return Signature(tuple(inputs), tuple(outputs), **more)
    except ValueError as error:
        raise ModelError(f"has a signature that cannot be served: {error}") from error


def check_signature(session: onnxruntime.InferenceSession, promised: Signature) -> None:
    """Raises ModelError unless the model in `session` can have the `promised` signature."""
    for found, tensors in zip(declared(session), (promised.inputs, promised.outputs), strict=True):
        named = {each.name: each for each in found}
        if named.keys() != {each.name for each in tensors}:
            raise ModelError(
                f"has {', '.join(map(str, found)) or 'nothing'}, where "
                f"{', '.join(map(str, tensors))} is promised"
            )
        for tensor in tensors:
            if not _can_be(named[tensor.name], tensor, promised.batch):
                raise ModelError(f"has {named[tensor.name]}, where {tensor} is promised")


def _can_be(found: Declared, tensor: Tensor, batch: int) -> bool:
    shape = (batch or None, *tensor.shape)
    return (
        found.datatype == tensor.datatype
        and len(found.shape) == len(shape)
        and all(
            not isinstance(size, int) or size == wanted
            for size, wanted in zip(found.shape, shape, strict=True)
        )
    )


def _declared(role: str, node: Any) -> Declared:
    if node.type == "tensor(string)":
        raise ModelError(
            f"has {role} {node.name!r} of strings, which have no fixed number of bytes; export it "
            "without its tokenizer, and send ids"
        )
    if node.type not in _DATATYPES:
        raise ModelError(f"has {role} {node.name!r} of {node.type}, not of numbers")
    return Declared(role, node.name, _DATATYPES[node.type], tuple(node.shape))
