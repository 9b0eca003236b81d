"""A model in ONNX Runtime: a batch of rows in, a batch of rows out."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parity_models.errors import DataError, ModelError
from parity_models.models.onnx_signature import check_signature, fixed_signature
from parity_models.models.signature import Kind, Signature
from parity_models.models.tensor import TensorSpec

MAX_MODEL_BYTES = 2**31 - 1
"""What one ONNX file can hold: protobuf goes no further."""

_LACKED = ("is not a registered function/op", "No Op registered", "No opset import")
"""What ONNX Runtime says where it lacks an operator."""

FATAL_ONLY = 4
"""The severity that ONNX Runtime logs, where what else it says is known anyway."""

_NO_FOLDER = "/dev/null/external-data"


class OnnxModel:
    """An ONNX file whose inputs and outputs have a batch axis in front.

    `model` is the file's path or its content. Its `signature` is given where the file does not say
    all of it: bounds of dynamic axes, the sizes of outputs, a batch axis that is not free. Only the
    file itself is read: weights kept in further files are refused, since nothing vouches for those.
    `threads` compute within one call; they hold no core while they wait, which would ruin the speed
    of other processes. Raises ModelError for a file that cannot be read or is not such a model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        signature: Signature | None = None,
        threads: int = 1,
    ) -> None:
        content = model if isinstance(model, bytes) else read_model(model)
        subject = "it" if isinstance(model, bytes) else str(model)
        try:
            self._session = open_session(content, threads)
            if signature is None:
                signature = fixed_signature(self._session)
            else:
                check_signature(self._session, signature)
        except ModelError as error:
            raise ModelError(f"{subject} {error}") from error
        self.signature = signature
        self._feed = signature.inputs[0].name
        self._fetch = [each.name for each in signature.outputs]
        plain = signature.plain
        self._simple = (
            plain is not None
            and not (plain.input.is_record or plain.output.is_record)
            and not signature.batch
        )

    @property
    def input(self) -> TensorSpec:
        """Its only input. Raises ModelError for a model with several, or a dynamic one."""
        return self.signature.input

    @property
    def output(self) -> TensorSpec:
        """Its only output. Raises ModelError for a model with several, or a dynamic one."""
        return self.signature.output

    def __call__(
        self, batch: NDArray[Any], options: onnxruntime.RunOptions | None = None
    ) -> NDArray[Any]:
        """A batch of n ≥ 1 queries of one kind to n predictions (see models.tensor.Layout).

        From (n, *query_shape) to (n, *output_shape), of the signature's dtypes; records where the
        model has several inputs, or outputs.

        Another thread can end the call by setting `options.terminate`. Raises what ONNX Runtime
        raises, for which there is no closer class than Exception, and ValueError for queries and
        predictions that are not as the signature says.
        """
        if self._simple:
            result: NDArray[Any] = self._session.run(self._fetch, {self._feed: batch}, options)[0]
            return result
        kind = self.signature.kind_of(batch[0, ...])
        size = self.signature.batch
        if not size:
            return self._run(batch, kind, options)
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            whole = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(self._run(whole, kind, options)[: len(part)])
        return np.concatenate(parts)

    def predict(self, queries: NDArray[Any]) -> NDArray[Any]:
        """As a call, of queries that a user gave: (n, *query_shape) to (n, *output_shape).

        Raises DataError for those that the model cannot run, such as ids that it has no vector for.
        """
        try:
            return self(queries)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise DataError(
                f"the model cannot run some of the queries: {why_it_fails(error)}; leave those "
                "out, or check that they are what the model takes"
            ) from error

    def _run(
        self, batch: NDArray[Any], kind: Kind, options: onnxruntime.RunOptions | None
    ) -> NDArray[Any]:
        feeds = {name: np.ascontiguousarray(each) for name, each in kind.input.split(batch).items()}
        results = self._session.run(self._fetch, feeds, options)
        outputs = dict(zip(self._fetch, results, strict=True))
        for spec in kind.output.tensors:
            shape = (len(batch), *spec.shape)
            if outputs[spec.name].shape != shape:
                raise ValueError(
                    f"output {spec.name!r} has shape {list(outputs[spec.name].shape)}, not "
                    f"{list(shape)}"
                )
        return kind.output.join(outputs)


def why_it_fails(error: Exception) -> str:
    """What ONNX Runtime says of a run that failed, without the places in its own source."""
    why = " ".join(str(error).split()).rpartition("Status Message: ")[2]
    return re.sub(r"^/\S+:\d+ .*? was false\. ", "", why).rstrip(".")


def open_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """The model in `content`, ready to run. Raises ModelError, whose text has no subject."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NO_FOLDER
    )
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise ModelError(_why(error)) from error


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
