"""Tensors of any signature come through the protocols' messages as they were sent, in whatever
form, padded on the way and cut back."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.load.wire import ModelMetadata, OpenTensor, RequestWriter, read_answers
from parity_models.models.named_inputs import padded, sizes_along
from parity_models.models.signature import Signature
from parity_models.models.tensor import Layout
from parity_models.scheduling import Source
from parity_models.serving.grpc import codec as grpc_codec
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse
from parity_models.serving.in_flight import Result
from parity_models.serving.remote.v1 import instances_of, predictions_from
from parity_models.serving.rest import codec as rest_codec
from parity_models.serving.rest.v1 import predict_response, read_predict
from parity_models.serving.served_model import ServedModel
from signatures import axes_of, tensors, values

Sent = tuple[ServedModel, dict[str, NDArray[Any]]]

HEADER_LENGTH = "Inference-Header-Content-Length"


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A model that gives what it takes, and queries for it, of sizes that are no buckets."""
    given = draw(tensors())
    model = ServedModel("model", Signature(given, given, axes_of(*given)), max_rows=10)
    size, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    specs = Layout(tuple(each.at({"length": size}) for each in given)).tensors
    return model, {each.name: draw(values(each, rows)) for each in specs}


def described(model: ServedModel) -> ModelMetadata:
    about = model.metadata
    inputs, outputs = (
        tuple(OpenTensor(each.name, each.datatype, each.shape[1:]) for each in each_role)
        for each_role in (about.inputs, about.outputs)
    )
    return ModelMetadata("model", inputs, outputs)


@given(requests(), st.booleans(), st.booleans())
@settings(max_examples=80)
def test_over_rest_as_json_or_binary(sent: Sent, binary: bool, alone: bool) -> None:
    model, queries = sent
    about = described(model)
    output = about.outputs[-1].name
    body, headers = RequestWriter(about, binary, output if alone else None).request(queries)
    asked = rest_codec.RequestReader(model).read(body, headers.get(HEADER_LENGTH))
    model.signature.kind_of(asked.rows[0, ...])
    sources = [Source.MODEL] * len(asked.rows)
    content, length = rest_codec.encode_response(model, asked, asked.rows, sources)
    header = None if length is None else str(length)
    for name in [output] if alone else queries:
        answers = read_answers(about, len(sources), content, header, name)
        assert answers.outputs.dtype == queries[name].dtype
        np.testing.assert_array_equal(answers.outputs, queries[name])


@given(requests(), st.booleans())
@settings(max_examples=80)
def test_over_grpc_raw_or_typed(sent: Sent, raw: bool) -> None:
    model, queries = sent
    raw = raw or any(each.datatype == "FP16" for each in model.signature.inputs)
    request = ModelInferRequest(model_name="model")
    for each in model.signature.inputs:
        array = queries[each.name]
        tensor = request.inputs.add(name=each.name, datatype=each.datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            contents = getattr(tensor.contents, grpc_codec._FIELDS[each.datatype])
            contents.extend(array.ravel().tolist())
    asked = grpc_codec.decode_request(request, model)
    sources = [Source.MODEL] * len(asked.rows)
    answer = grpc_codec.encode_response(model, asked, asked.rows, sources)
    answer = ModelInferResponse.FromString(answer.SerializeToString())
    for i, output in enumerate(answer.outputs):
        array = queries[output.name]
        if raw:
            found = np.frombuffer(answer.raw_output_contents[i], array.dtype)
        else:
            field = grpc_codec._FIELDS[output.datatype]
            found = np.array(getattr(output.contents, field), array.dtype)
        assert tuple(output.shape) == array.shape
        np.testing.assert_array_equal(found.reshape(array.shape), array)


@given(requests())
@settings(max_examples=80)
def test_over_v1_to_an_upstream_which_is_this_software(sent: Sent) -> None:
    model, queries = sent
    sizes = sizes_along(queries, model.signature)
    rows = padded(queries, model.signature, sizes)
    kind, body = instances_of(list(rows), model.signature)
    asked, by_row = read_predict(body, model)
    answers = Result(asked.rows, [Source.MODEL] * len(rows))
    content = predict_response(model, asked, answers, by_row).content
    np.testing.assert_array_equal(predictions_from(content, kind, len(rows)), rows)
