"""The forms of answers in clients: how to read the model's, and make a stand-in's."""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tensors.signature import DATATYPES, Tensor

Array = NDArray[Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """The form of a call's answers, so that stand-ins can answer before the first good call.

    If the bundle has labels, both functions are about labels: a str for one query, a list for
    several. Else they are about the output that stand-ins imitate, an array (n, *output shape).

    Args:
        read: Returns what an answer says. If it raises an error, the answer is not compared.
        make: Returns an answer that says this.

    """

    read: Callable[[Any], Any]
    make: Callable[[Any], Any]


class Codec(Protocol):
    """Reads answers of the model, and makes those of stand-ins."""

    def read(self, value: Any) -> Array | None:
        """Return the output in an answer; None if there is none. Rows are NaN if they say a class
        that the stand-in does not know."""

    def make(self, output: Array) -> Any:
        """Return an answer with this output."""


class _Given:
    """The user's form."""

    def __init__(self, form: Form, spec: Tensor, labels: Sequence[str]) -> None:
        self._form, self._spec, self._labels = form, spec, labels
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._lists = False
        """Whether the newest answer that was read holds a list of labels."""
        self._warned = False

    def read(self, value: Any) -> Array | None:
        try:
            said = self._form.read(value)
            output = self._one_hot(said) if self._labels else np.asarray(said)
            if output.shape[1:] != self._spec.shape:
                raise ValueError(f"rows of {[*output.shape[1:]]}, not {[*self._spec.shape]}")
        except Exception as error:  # of the user's function
            self._warn(f"an answer cannot be read ({type(error).__name__}: {error})")
            return None
        return output

    def _one_hot(self, said: Any) -> Array:
        self._lists = not isinstance(said, str)
        said = [*said] if self._lists else [said]
        output = np.full((len(said), len(self._labels)), np.nan, np.float32)
        for row, label in zip(output, said, strict=True):
            if label in self._numbers:
                row[...] = np.arange(len(row)) == self._numbers[label]
            else:
                self._warn(f"the call answers {label!r}, which is none of the bundle's labels")
        return output

    def make(self, output: Array) -> Any:
        if not self._labels:
            return self._form.make(output)
        said = [self._labels[number] for number in output.argmax(axis=1)]
        return self._form.make(said if self._lists or len(said) > 1 else said[0])

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s; this is said once", problem)


class Learned(ABC):
    """A form that is learned from `sample`, an answer of the model with the output `spec`.

    `outputs` returns all outputs of an answer by name; a single one may have any name except the
    names of the model's `other` outputs. `make` returns an answer with this output.
    """

    def __init__(self, sample: Any, spec: Tensor, other: Collection[str] = ()) -> None:
        self.sample, self.spec, self._other = sample, spec, other

    def read(self, value: Any) -> Array | None:
        """Return the output in an answer; None if it is not of this form."""
        try:
            ((name, only),) = self.outputs(value).items()
            fits = only.shape[1:] == self.spec.shape and only.dtype.kind in "biuf"
            return only if fits and name not in self._other else None
        except Exception:  # clients raise anything for a body that they cannot read
            return None

    @abstractmethod
    def outputs(self, value: Any) -> Mapping[str, Array]: ...

    @abstractmethod
    def make(self, output: Array) -> Any: ...


class _Arrays(Learned):
    """An array, or arrays by name."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        return value if isinstance(value, Mapping) else {self.spec.name: value}

    def make(self, output: Array) -> Any:
        if not isinstance(self.sample, Mapping):
            return output.astype(self.sample.dtype, copy=False)
        ((name, like),) = self.sample.items()
        return {name: output.astype(like.dtype, copy=False)}


class _Json(Learned):
    """The body of an Open Inference Protocol response, as parsed JSON."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        return {
            each["name"]: np.asarray(each["data"], DATATYPES[each["datatype"]]).reshape(
                each["shape"]
            )
            for each in value["outputs"]
        }

    def make(self, output: Array) -> Any:
        return _body(self.sample, output)


class _TritonHttp(Learned):
    """tritonclient.http.InferResult, of the synchronous client and of aio."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        names = [each["name"] for each in value.get_response()["outputs"]]
        return {each: value.as_numpy(each) for each in names}

    def make(self, output: Array) -> Any:
        body = _body(self.sample.get_response(), output)
        return type(self.sample).from_response_body(msgspec.json.encode(body))


class _TritonGrpc(Learned):
    """tritonclient.grpc.InferResult, of the synchronous client and of aio."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        names = [each.name for each in value.get_response().outputs]
        return {each: value.as_numpy(each) for each in names}

    def make(self, output: Array) -> Any:
        like = self.sample.get_response()
        response = type(like)(model_name=like.model_name, model_version=like.model_version)
        (given,) = like.outputs
        response.outputs.add(name=given.name, datatype=given.datatype, shape=output.shape)
        dtype = DATATYPES[given.datatype]
        response.raw_output_contents.append(output.astype(dtype, copy=False).tobytes())
        return type(self.sample)(response)


class _Httpx(Learned):
    """httpx.Response, whose body is the Open Inference Protocol's, as JSON."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        return _Json(value, self.spec).outputs(value.json())

    def make(self, output: Array) -> Any:
        body = msgspec.json.encode(_body(self.sample.json(), output))
        headers = {"content-type": "application/json"}
        return type(self.sample)(200, content=body, headers=headers, request=self.sample.request)


_FORMS: Mapping[tuple[str, str], type[Learned]] = {
    ("tritonclient.http", "InferResult"): _TritonHttp,
    ("tritonclient.grpc", "InferResult"): _TritonGrpc,
    ("httpx", "Response"): _Httpx,
}
"""Forms by the answer's class: the module that exports it, and its name there."""


def is_error(value: Any) -> bool:
    """Return whether the answer is an error that was not raised: an httpx.Response, or JSON."""
    if isinstance(value, Mapping):
        return isinstance(value.get("error"), str)
    return getattr(value, "is_error", False) is True


def given(form: Form, spec: Tensor, labels: Sequence[str] = ()) -> Codec:
    """Return the user's form, of answers with the output `spec`, or with one of these labels."""
    return _Given(form, spec, labels)


def form_of(
    sample: Any, spec: Tensor, other: Collection[str] = (), labels: Sequence[str] = ()
) -> Codec:
    """Return the form of a model's answer `sample`, to make stand-ins' answers with the output
    `spec`, or with one of these labels; the model has `other` outputs. Raises UserError for a
    stream, for other types, and for answers with other outputs."""
    if labels and isinstance(sample, str | list):
        return _Given(Form(lambda value: value, lambda said: said), spec, labels)
    if hasattr(sample, "__aiter__") and not hasattr(sample, "json"):
        raise UserError(
            "the call returns a stream, whose parts cannot be taken back; only whole answers are "
            "raced"
        )
    if isinstance(sample, Mapping) and "outputs" in sample:
        form: Learned = _Json(sample, spec, other)
    elif isinstance(sample, Mapping | np.ndarray):
        form = _Arrays(sample, spec, other)
    else:
        kinds = (
            kind
            for (module, exported), kind in _FORMS.items()
            if isinstance(sample, getattr(sys.modules.get(module), exported, ()))
        )
        kind = next(kinds, None)
        if kind is None:
            raise UserError(
                f"the call returns {type(sample).__module__}.{type(sample).__qualname__}, and a "
                "stand-in's answer cannot be made like it; let the call return an array, arrays "
                "by name, the parsed JSON of the Open Inference Protocol, an httpx.Response or a "
                "tritonclient InferResult, or give a form=pm.Form(read, make)"
            )
        form = kind(sample, spec, other)
    try:
        found = {name: list(array.shape) for name, array in form.outputs(sample).items()}
    except Exception as error:  # clients raise anything for a body that they cannot read
        raise UserError(
            "the call returns an answer that cannot be read as arrays or as JSON of the Open "
            f"Inference Protocol ({type(error).__name__}: {error}); binary bodies are read by "
            "tritonclient only"
        ) from None
    if form.read(sample) is None:
        shape = ["rows", *spec.shape]
        raise UserError(
            f"the call returns the outputs {found}, and stand-ins give only {spec.name!r} "
            f"{shape}; ask for that output alone"
        )
    return form


def _body(like: Mapping[str, Any], output: Array) -> dict[str, Any]:
    (given,) = like["outputs"]
    dtype = DATATYPES[given["datatype"]]
    tensor = {
        "name": given["name"],
        "datatype": given["datatype"],
        "shape": list(output.shape),
        "data": output.astype(dtype, copy=False).ravel().tolist(),
    }
    kept = {key: like[key] for key in ("model_name", "model_version") if key in like}
    return {**kept, "outputs": [tensor]}
