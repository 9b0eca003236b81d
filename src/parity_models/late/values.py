"""The forms in which clients have a model's answer: what it holds, and how a stand-in's is made."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.signature import DATATYPES

Array = NDArray[Any]

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Form(ABC):
    """A form of answers, learned from `sample`, one of the model's.

    `outputs` returns the output `name` of an answer, which may be called otherwise if it is the
    only one; None if it is not there. `make` returns an answer with this output.
    """

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    @abstractmethod
    def output(self, value: Any, name: str) -> Array | None: ...

    @abstractmethod
    def make(self, name: str, output: Array) -> Any: ...


class _Arrays(Form):
    """An array, or arrays by name."""

    def output(self, value: Any, name: str) -> Array | None:
        return _only(value, name) if isinstance(value, Mapping) else np.asarray(value)

    def make(self, name: str, output: Array) -> Any:
        if not isinstance(self.sample, Mapping):
            return output
        return {name if name in self.sample else next(iter(self.sample)): output}


class _Json(Form):
    """The body of an Open Inference Protocol response, as parsed JSON."""

    def output(self, value: Any, name: str) -> Array | None:
        tensors = {
            each["name"]: np.asarray(each["data"], DATATYPES.get(each["datatype"])).reshape(
                each["shape"]
            )
            for each in value["outputs"]
        }
        return _only(tensors, name)

    def make(self, name: str, output: Array) -> Any:
        return _body(self.sample, name, output)


class _TritonHttp(Form):
    """tritonclient.http.InferResult, of the synchronous client and of aio."""

    def output(self, value: Any, name: str) -> Array | None:
        names = [each["name"] for each in value.get_response().get("outputs", ())]
        return _only({each: value.as_numpy(each) for each in names}, name)

    def make(self, name: str, output: Array) -> Any:
        body = _body(self.sample.get_response(), name, output)
        return type(self.sample).from_response_body(msgspec.json.encode(body))


class _TritonGrpc(Form):
    """tritonclient.grpc.InferResult, of the synchronous client and of aio."""

    def output(self, value: Any, name: str) -> Array | None:
        names = [each.name for each in value.get_response().outputs]
        return _only({each: value.as_numpy(each) for each in names}, name)

    def make(self, name: str, output: Array) -> Any:
        like = self.sample.get_response()
        response = type(like)(model_name=like.model_name, model_version=like.model_version)
        given = next((each for each in like.outputs if each.name == name), like.outputs[0])
        response.outputs.add(name=given.name, datatype=given.datatype, shape=output.shape)
        dtype = DATATYPES[given.datatype]
        response.raw_output_contents.append(output.astype(dtype, copy=False).tobytes())
        return type(self.sample)(response)


class _Httpx(Form):
    """httpx.Response, whose body is the Open Inference Protocol's, as JSON."""

    def output(self, value: Any, name: str) -> Array | None:
        return _Json(None).output(value.json(), name)

    def make(self, name: str, output: Array) -> Any:
        body = msgspec.json.encode(_body(self.sample.json(), name, output))
        headers = {"content-type": "application/json"}
        return type(self.sample)(200, content=body, headers=headers, request=self.sample.request)


_FORMS: Mapping[tuple[str, str], type[Form]] = {
    ("tritonclient.http", "InferResult"): _TritonHttp,
    ("tritonclient.grpc", "InferResult"): _TritonGrpc,
    ("httpx", "Response"): _Httpx,
}
"""By the module that exports a class, and its name there."""


def is_error(value: Any) -> bool:
    """Return whether the answer is an error that was not raised, as an httpx.Response may be."""
    return getattr(value, "is_error", False) is True


def form_of(sample: Any, name: str) -> Form:
    """Return the form of a model's answer, from which stand-ins' answers with the output `name` are
    made. Raises UserError for a stream, for other types, and for answers that hold more."""
    if hasattr(sample, "__aiter__") and not hasattr(sample, "json"):
        raise UserError(
            "the call returns a stream, of which no part could be taken back; only whole answers "
            "are raced"
        )
    if isinstance(sample, Mapping) and "outputs" in sample:
        form: Form = _Json(sample)
    elif isinstance(sample, Mapping | np.ndarray):
        form = _Arrays(sample)
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
        form = kind(sample)
    if form.output(sample, name) is None:
        raise UserError(
            f"the call returns several outputs, and stand-ins give only {name!r}; ask for that "
            "output alone"
        )
    return form


def _only(outputs: Mapping[str, Any], name: str) -> Array | None:
    """Return the only output, if there is no other, whatever its name."""
    if len(outputs) != 1:
        return None
    (only,) = outputs.values()
    return np.asarray(only)


def _body(like: Mapping[str, Any], name: str, output: Array) -> dict[str, Any]:
    given = next((each for each in like["outputs"] if each["name"] == name), like["outputs"][0])
    dtype = DATATYPES[given["datatype"]]
    tensor = {
        "name": given["name"],
        "datatype": given["datatype"],
        "shape": list(output.shape),
        "data": output.astype(dtype, copy=False).ravel().tolist(),
    }
    kept = {key: like[key] for key in ("model_name", "model_version") if key in like}
    return {**kept, "outputs": [tensor]}
