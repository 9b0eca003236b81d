"""The forms of answers in clients: how to read the model's, and make a stand-in's."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tensors.signature import DATATYPES, Tensor

Array = NDArray[Any]


class Form(ABC):
    """A form of answers, learned from `sample`, an answer of the model with the output `spec`.

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


class _Arrays(Form):
    """An array, or arrays by name."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        return value if isinstance(value, Mapping) else {self.spec.name: value}

    def make(self, output: Array) -> Any:
        if not isinstance(self.sample, Mapping):
            return output.astype(self.sample.dtype, copy=False)
        ((name, like),) = self.sample.items()
        return {name: output.astype(like.dtype, copy=False)}


class _Json(Form):
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


class _TritonHttp(Form):
    """tritonclient.http.InferResult, of the synchronous client and of aio."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        names = [each["name"] for each in value.get_response()["outputs"]]
        return {each: value.as_numpy(each) for each in names}

    def make(self, output: Array) -> Any:
        body = _body(self.sample.get_response(), output)
        return type(self.sample).from_response_body(msgspec.json.encode(body))


class _TritonGrpc(Form):
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


class _Httpx(Form):
    """httpx.Response, whose body is the Open Inference Protocol's, as JSON."""

    def outputs(self, value: Any) -> Mapping[str, Array]:
        return _Json(value, self.spec).outputs(value.json())

    def make(self, output: Array) -> Any:
        body = msgspec.json.encode(_body(self.sample.json(), output))
        headers = {"content-type": "application/json"}
        return type(self.sample)(200, content=body, headers=headers, request=self.sample.request)


_FORMS: Mapping[tuple[str, str], type[Form]] = {
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


def form_of(sample: Any, spec: Tensor, other: Collection[str] = ()) -> Form:
    """Return the form of a model's answer `sample`, to make stand-ins' answers with the output
    `spec`; the model has `other` outputs. Raises UserError for a stream, for other types, and for
    answers with other outputs."""
    if hasattr(sample, "__aiter__") and not hasattr(sample, "json"):
        raise UserError(
            "the call returns a stream, whose parts cannot be taken back; only whole answers are "
            "raced"
        )
    if isinstance(sample, Mapping) and "outputs" in sample:
        form: Form = _Json(sample, spec, other)
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
                "tritonclient InferResult"
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
