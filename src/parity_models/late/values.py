"""The forms of answers in clients: how to read the model's, and make a stand-in's."""

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tensors.pairs import Labels
from parity_models.tensors.signature import DATATYPES, Batch, Tensor

Array = NDArray[Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """The form of a call's answers, so that stand-ins can answer before the first good call.

    If the bundle has labels, both functions are about labels: a str for one query, a list for
    several. Else, or if `read` returns numbers, they are about the output that stand-ins imitate,
    an array (n, *output shape).

    Args:
        read: Returns what an answer says. If it raises an error, the answer is not compared.
        make: Returns an answer that says this.

    """

    read: Callable[[Any], Any]
    make: Callable[[Any], Any]


@dataclass
class Codec:
    """Reads answers of a form, and makes them.

    Args:
        form: Reads and makes labels if there are `labels`, until it reads numbers; else arrays,
            also by name.
        spec: The output that stand-ins imitate. If it comes by name, any name will do except those
            of `other` outputs.
        other: The names of the model's other outputs.
        labels: The labels of the classes, if they have any.

    """

    form: Form
    spec: Tensor
    other: Collection[str] = ()
    labels: InitVar[Sequence[str]] = ()

    def __post_init__(self, labels: Sequence[str]) -> None:
        self._labels = Labels(tuple(labels)) if labels else None
        self._says_labels, self._lists = bool(labels), False
        """Whether the newest answer that was read holds labels, and a list of them."""
        self._warned = False

    def read(self, value: Any) -> Array | None:
        """Return the output in an answer; None if there is none."""
        try:
            return self.output(self.form.read(value))
        except Exception as error:  # of the user's function, or a client's for a damaged body
            if not self._warned:
                problem = type(error).__name__
                _log.warning(
                    "an answer cannot be compared: %s: %s; this is said once", problem, error
                )
            self._warned = True
            return None

    def output(self, said: Any) -> Array:
        """Return the output in what the form has read. Raises ValueError if it does not fit."""
        is_text = isinstance(said, str) or np.asarray(said).dtype.kind in "UO"
        self._says_labels = is_text and not isinstance(said, Mapping)
        if self._labels is not None and self._says_labels:
            self._lists = not isinstance(said, str)
            return self._labels.outputs(np.array([*said] if self._lists else [said], object))
        arrays = said if isinstance(said, Mapping) else {self.spec.name: said}
        found = {name: np.asarray(each) for name, each in arrays.items()}
        if len(found) == 1 and found.keys().isdisjoint(self.other):
            (array,) = found.values()
            if array.shape[1:] == self.spec.shape and array.dtype.kind in "biuf":
                return array
        shapes = {name: list(array.shape) for name, array in found.items()}
        spec = self.spec
        raise ValueError(f"the outputs {shapes}, and not {spec.name!r} {['rows', *spec.shape]}")

    def make(self, output: Array) -> Any:
        """Return an answer with this output."""
        if self._labels is None or not self._says_labels:
            return self.form.make(output)
        said = self._labels.texts(output).ravel().tolist()
        return self.form.make(said if self._lists or len(said) > 1 else said[0])


def is_error(value: Any) -> bool:
    """Return whether the answer is an error that was not raised: an httpx.Response, or JSON."""
    if isinstance(value, Mapping):
        return isinstance(value.get("error"), str)
    return getattr(value, "is_error", False) is True


def form_of(
    sample: Any, spec: Tensor, other: Collection[str] = (), labels: Sequence[str] = ()
) -> Codec:
    """Return the form of a model's answer `sample`; see Codec. Raises UserError for a stream, for
    other types, and for answers with other outputs."""
    if hasattr(sample, "__aiter__") and not hasattr(sample, "json"):
        raise UserError(
            "the call returns a stream, whose parts cannot be taken back; only whole answers are "
            "raced"
        )
    if labels and isinstance(sample, str | list):
        return Codec(Form(_same, _same), spec, other, labels)
    made = (
        make(sample)
        for (module, exported), make in _FORMS.items()
        if isinstance(sample, getattr(sys.modules.get(module), exported, ()))
    )
    form = next(made, None)
    if form is None:
        raise UserError(
            f"the call returns {type(sample).__module__}.{type(sample).__qualname__}, and a "
            "stand-in's answer cannot be made like it; let the call return an array, arrays "
            "by name, the parsed JSON of the Open Inference Protocol, an httpx.Response or a "
            "tritonclient InferResult, or give a form=pm.Form(read, make)"
        )
    try:
        said = form.read(sample)
    except Exception as error:  # clients raise anything for a body that they cannot read
        raise UserError(
            "the call returns an answer that cannot be read as arrays or as JSON of the Open "
            f"Inference Protocol ({type(error).__name__}: {error}); binary bodies are read by "
            "tritonclient only"
        ) from None
    codec = Codec(form, spec, other)
    try:
        codec.output(said)
    except ValueError as error:
        raise UserError(f"the call returns {error}; ask for that output alone") from None
    return codec


def _same(value: Any) -> Any:
    return value


def _mapping(sample: Any) -> Form:
    """Arrays by name, or parsed JSON."""
    return _json(sample) if "outputs" in sample else _arrays(sample)


def _arrays(sample: Any) -> Form:
    """An array, or arrays by name."""

    def make(output: Array) -> Any:
        if not isinstance(sample, Mapping):
            return output.astype(sample.dtype, copy=False)
        return {name: output.astype(like.dtype, copy=False) for name, like in sample.items()}

    return Form(_same, make)


def _json(sample: Any) -> Form:
    """The body of an Open Inference Protocol response, as parsed JSON."""

    def make(output: Array) -> Any:
        (given,) = sample["outputs"]
        dtype = DATATYPES[given["datatype"]]
        data = output.astype(dtype, copy=False).ravel().tolist()
        kept = {key: sample[key] for key in ("model_name", "model_version") if key in sample}
        tensor = {"name": given["name"], "datatype": given["datatype"]}
        return {**kept, "outputs": [{**tensor, "shape": list(output.shape), "data": data}]}

    return Form(lambda value: arrays_in(value["outputs"]), make)


def arrays_in(tensors: Sequence[Any]) -> dict[str, Array]:
    """Return the arrays of the Open Inference Protocol's tensors in JSON, by name."""
    return {
        each["name"]: np.asarray(each["data"], DATATYPES[each["datatype"]]).reshape(each["shape"])
        for each in tensors
    }


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Open Inference Protocol in JSON, without parameters."""

    inputs: list[dict[str, str | list[Any]]]
    outputs: list[dict[str, str]] = []
    parameters: Annotated[dict[str, Any], msgspec.Meta(max_length=0)] = {}
    id: str = ""
    model_name: str = ""

    def arrays(self) -> Batch:
        """Return its inputs by name."""
        return arrays_in(self.inputs)


def _httpx(sample: Any) -> Form:
    """httpx.Response, whose body is the Open Inference Protocol's, as JSON."""
    headers = {"content-type": "application/json"}

    def make(output: Array) -> Any:
        body = msgspec.json.encode(_json(sample.json()).make(output))
        return type(sample)(200, content=body, headers=headers, request=sample.request)

    return Form(lambda value: arrays_in(value.json()["outputs"]), make)


def _triton_http(sample: Any) -> Form:
    """tritonclient.http.InferResult, of the synchronous client and of aio."""

    def read(value: Any) -> Mapping[str, Array]:
        names = [each["name"] for each in value.get_response()["outputs"]]
        return {each: value.as_numpy(each) for each in names}

    def make(output: Array) -> Any:
        body = _json(sample.get_response()).make(output)
        return type(sample).from_response_body(msgspec.json.encode(body))

    return Form(read, make)


def _triton_grpc(sample: Any) -> Form:
    """tritonclient.grpc.InferResult, of the synchronous client and of aio."""

    def read(value: Any) -> Mapping[str, Array]:
        names = [each.name for each in value.get_response().outputs]
        return {each: value.as_numpy(each) for each in names}

    def make(output: Array) -> Any:
        like = sample.get_response()
        response = type(like)(model_name=like.model_name, model_version=like.model_version)
        (given,) = like.outputs
        response.outputs.add(name=given.name, datatype=given.datatype, shape=output.shape)
        dtype = DATATYPES[given.datatype]
        response.raw_output_contents.append(output.astype(dtype, copy=False).tobytes())
        return type(sample)(response)

    return Form(read, make)


_FORMS: Mapping[tuple[str, str], Callable[[Any], Form]] = {
    ("collections.abc", "Mapping"): _mapping,
    ("numpy", "ndarray"): _arrays,
    ("tritonclient.http", "InferResult"): _triton_http,
    ("tritonclient.grpc", "InferResult"): _triton_grpc,
    ("httpx", "Response"): _httpx,
}
"""Forms by the answer's class: the module that exports it, and its name there."""
