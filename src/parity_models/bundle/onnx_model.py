"""A model in ONNX Runtime: a batch of queries in, a batch of outputs out."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import onnxruntime

from parity_models.errors import DataError, ModelError, spell
from parity_models.tensors.features import TextFeatures
from parity_models.tensors.signature import DATATYPES, Array, Signature, Tensor, batches

MAX_MODEL_BYTES = 2**31 - 1
"""The largest ONNX file: protobuf goes no further."""

FATAL_ONLY = 4
"""The severity that ONNX Runtime logs: its other messages repeat its exceptions."""

_LACKED = ("is not a registered function/op", "No Op registered", "No opset import")
"""ONNX Runtime's messages about missing operators."""

TEXT_FEATURES = "text_features"
"""The metadata of an ONNX file that reads a text as the buckets of its features: a TextFeatures."""

ELSEWHERE = hashlib.sha256(b"").hexdigest()
"""The SHA-256 of a deployed model that a bundle does not hold."""

IS_ELSEWHERE = (
    "holds no model: it was made from a log, and the model runs elsewhere. Use it in front of that "
    "(Late, parm serve --deployed, --stand-in-only), give a log to measure it, or give the model's "
    "ONNX file for all else"
)

_NO_FOLDER = "/dev/null/external-data"

_DATATYPES = {f"tensor({name.lower()})": name for name in DATATYPES}
_DATATYPES |= {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64"}
_DATATYPES["tensor(string)"] = "BYTES"


def run_options() -> onnxruntime.RunOptions:
    """Return options of a run that can be ended, by setting `terminate`."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = FATAL_ONLY
    return options


class OnnxModel:
    """An ONNX file whose inputs and outputs have a batch axis in front, for any number of rows.

    `model` is the file's path or its content, called `name` in errors. Its `signature` is given if
    the file does not declare all of it: bounds of dynamic axes, the sizes of outputs. Weights in
    further files are refused, as no hash covers those. `threads` compute within one call; they hold
    no core while they wait. Raises ModelError for a file that cannot be read or is not such a
    model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        signature: Signature | None = None,
        threads: int = 1,
        name: str = "it",
    ) -> None:
        content = model if isinstance(model, bytes) else read_model(model)
        name = name if isinstance(model, bytes) else str(model)
        try:
            session = open_session(content, threads)
            if signature is None:
                signature = _fixed_signature(session)
            else:
                _check_signature(session, signature)
        except ModelError as error:
            raise ModelError(f"{name} {error}") from error
        self._session = _FixedBatch(session, signature.batch) if signature.batch else session
        self.signature = signature
        self._outputs = [each.name for each in signature.outputs]

    def __call__(
        self, batch: Mapping[str, Array], options: onnxruntime.RunOptions | None = None
    ) -> dict[str, Array]:
        """Run the model on a batch of n ≥ 1 queries (n, ...), by input, of one bucket. Return the
        outputs (n, ...) by name.

        Another thread can end the call by setting `options.terminate`. ONNX Runtime's errors share
        no base class but Exception.
        """
        feeds = {name: np.ascontiguousarray(each) for name, each in batch.items()}
        results = self._session.run(self._outputs, feeds, options)
        return dict(zip(self._outputs, results, strict=True))

    def predict(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on a user's queries.

        Raises DataError for queries that it cannot run, such as ids without an embedding.
        """
        try:
            return self(batch)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise DataError(
                f"the model cannot run some of the queries: {why_it_fails(error)}; leave those "
                "out, or check that they are what the model takes"
            ) from error


class _FixedBatch:
    """A session of a model that takes `size` rows at once, for any number of rows."""

    def __init__(self, session: onnxruntime.InferenceSession, size: int) -> None:
        self._session, self._size = session, size

    def run(
        self, outputs: list[str], feeds: dict[str, Array], options: onnxruntime.RunOptions | None
    ) -> list[Array]:
        rows = len(next(iter(feeds.values())))
        parts = [
            self._session.run(outputs, {name: each[which] for name, each in feeds.items()}, options)
            for which in batches(rows, self._size)
        ]
        return [np.concatenate(each)[:rows] for each in zip(*parts, strict=True)]


class _TextSession:
    """A session of a model that takes the `features` of one text, for rows of one text."""

    def __init__(self, session: onnxruntime.InferenceSession, features: TextFeatures) -> None:
        self._session, self._features = session, features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_inputs(self) -> list[Any]:
        taken = SimpleNamespace(name=self._features.name, type="tensor(string)")
        taken.shape = ["batch", *self._features.shape]
        return [taken]

    def get_outputs(self) -> list[Any]:
        """Return the outputs for any number of texts; the model's own are for one."""
        return [
            SimpleNamespace(name=each.name, type=each.type, shape=["batch", *each.shape[1:]])
            for each in self._session.get_outputs()
        ]

    def run(
        self, outputs: list[str], feeds: dict[str, Array], options: onnxruntime.RunOptions | None
    ) -> list[Array]:
        (texts,) = feeds.values()
        ids = (self._features.ids(text) for text in texts.ravel().tolist())
        parts = [self._session.run(outputs, {"_ids": each}, options) for each in ids]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


@dataclass(frozen=True)
class PinnedModel:
    """An ONNX file that is only used while its content has this `sha256` (hexadecimal). By default
    its `signature` is the one that it declares. One that is elsewhere may answer with `labels`."""

    path: Path
    sha256: str
    signature: Signature | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Pin the file as it is now. Raises ModelError if it cannot be read."""
        return cls(path, hashlib.sha256(read_model(path)).hexdigest())

    def read(self) -> bytes:
        """Return the content. Raises ModelError if it cannot be read or has changed."""
        if self.sha256 == ELSEWHERE:
            raise ModelError(f"{self.path.parent} {IS_ELSEWHERE}")
        content = read_model(self.path)
        check_sha256(self.path, self.sha256, hashlib.sha256(content).hexdigest())
        return content

    def load(self) -> OnnxModel:
        """Return the model. Raises ModelError if it cannot be read or has changed."""
        return OnnxModel(self.read(), signature=self.signature)


def check_sha256(name: object, expected: str, found: str) -> None:
    """Raise ModelError, which calls the content `name`, if two hashes differ."""
    if found != expected:
        raise ModelError(
            f"{name} was changed since it was checked: its sha256 is {found}, not {expected}; "
            "restart the server to serve the new file"
        )


def read_model(path: Path) -> bytes:
    """Return the content of an ONNX file. Raises ModelError if it cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path} has {size} bytes; an ONNX file has {MAX_MODEL_BYTES} at most")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def open_session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open the model in `content`. Raises ModelError, whose text has no subject."""
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
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise ModelError(_why_not_opened(error)) from error
    features = session.get_modelmeta().custom_metadata_map.get(TEXT_FEATURES)
    if features is None:
        return session
    try:
        return _TextSession(session, msgspec.json.decode(features, type=TextFeatures))
    except msgspec.DecodeError as error:
        raise ModelError(
            f"reads texts in a way that this software does not know: {error}"
        ) from error


def class_names(content: bytes, count: int) -> tuple[str, ...]:
    """Return the names of a model's classes: its metadata `classes`, a JSON list of `count` texts,
    if there is one."""
    said = open_session(content).get_modelmeta().custom_metadata_map.get("classes", "")
    try:
        names = msgspec.json.decode(said, type=tuple[str, ...])
    except msgspec.DecodeError:
        return ()
    return names if len(names) == len(set(names)) == count else ()


def why_it_fails(error: Exception) -> str:
    """Return ONNX Runtime's message about a failed run, without the places in its source."""
    why = " ".join(str(error).split()).rpartition("Status Message: ")[2]
    return re.sub(r"^/\S+:\d+ .*? was false\. ", "", why).rstrip(".")


def _why_not_opened(error: Exception) -> str:
    text = " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())
    if "xternal data" in text:
        return (
            "keeps its weights in another file; export it with the weights inside "
            "(torch.onnx.export(..., external_data=False))"
        )
    if missing := re.search(r"construct locale with name:([\w.-]+?):", text):
        return (
            f"needs the locale {missing[1]}, which this machine lacks; install it (locale-gen), or "
            "export with a locale that every machine has (skl2onnx: "
            "options={TfidfVectorizer: {'locale': 'C.UTF-8'}})"
        )
    if any(sign in text for sign in _LACKED):
        return f"uses an operator that ONNX Runtime lacks ({text}); export it without that operator"
    if newest := re.search(r"official support for domain (\S+) is till opset (\d+)", text):
        domain, opset = newest.groups()
        return (
            f"needs a newer opset of {domain} than {opset}, the newest that ONNX Runtime "
            f"{onnxruntime.__version__} knows; export it for that one or an older one"
        )
    return f"cannot be loaded by ONNX Runtime ({text}); is it a complete ONNX file?"


# Signatures of files


class Declared(NamedTuple):
    """An input or output as the file declares it. Its `shape` has sizes, names of free axes, and
    None for a free axis without a name. The first is the batch axis."""

    role: str
    name: str
    datatype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.role} {self.name!r} of shape {list(self.shape)}"


def declared(session: onnxruntime.InferenceSession) -> tuple[list[Declared], list[Declared]]:
    """Return a model's inputs and outputs. Raises ModelError for types that cannot be served."""
    return (
        [_declared("input", node) for node in session.get_inputs()],
        [_declared("output", node) for node in session.get_outputs()],
    )


def _declared(role: str, node: Any) -> Declared:
    if node.type not in _DATATYPES:
        advice = "; export it with options={'zipmap': False}" if "map(" in node.type else ""
        raise ModelError(
            f"has {role} {node.name!r} of {node.type}, not of numbers or strings{advice}"
        )
    return Declared(role, node.name, _DATATYPES[node.type], tuple(node.shape))


def fixed_batch(inputs: Sequence[Declared]) -> int:
    """Return the number of rows that a model takes at once; 0: any. Raises ModelError for inputs
    without a batch axis."""
    firsts = {each.shape[0] if each.shape else -1 for each in inputs}
    sizes = {first if isinstance(first, int) else 0 for first in firsts}
    if len(sizes) != 1 or -1 in sizes:
        raise ModelError(
            f"has {', '.join(map(str, inputs)) or 'no inputs'}; the first axis of every input must "
            "be the batch axis, free or of one size"
        )
    return sizes.pop()


def _fixed_signature(session: onnxruntime.InferenceSession) -> Signature:
    """Return the signature of a model without free axes behind the batch axis."""
    inputs, outputs = declared(session)
    try:
        taken, given = (tuple(map(_fixed, each)) for each in (inputs, outputs))
        return Signature(taken, given, batch=fixed_batch(inputs))
    except ValueError as error:
        raise ModelError(f"has tensors that cannot be served: {error}") from error


def _fixed(tensor: Declared) -> Tensor:
    if not tensor.shape:
        raise ModelError(f"has {tensor}, without a batch axis in front; export it with one")
    row = tuple(axis for axis in tensor.shape[1:] if isinstance(axis, int) and axis > 0)
    if len(row) < len(tensor.shape) - 1:
        raise ModelError(
            f"has {tensor}; only the batch axis may be free here, so export it with the others "
            "fixed, bound them in a bundle (parm bundle --axis NAME=SIZE), or give queries that "
            f"bound them with {spell('inputs')}"
        )
    return Tensor(tensor.name, tensor.datatype, row)


def _check_signature(session: onnxruntime.InferenceSession, promised: Signature) -> None:
    """Raise ModelError unless the model in `session` can have the `promised` signature."""
    for found, tensors in zip(declared(session), (promised.inputs, promised.outputs), strict=True):
        named = {each.name: each for each in found}
        if named.keys() != {each.name for each in tensors}:
            raise ModelError(
                f"has {', '.join(map(str, found)) or 'nothing'}, where "
                f"{', '.join(map(str, tensors))} is promised"
            )
        for tensor in tensors:
            one, shape = named[tensor.name], (promised.batch or None, *tensor.shape)
            fits = one.datatype == tensor.datatype and len(one.shape) == len(shape)
            if not fits or any(
                isinstance(size, int) and size != wanted
                for size, wanted in zip(one.shape, shape, strict=True)
            ):
                raise ModelError(f"has {one}, where {tensor} is promised")
