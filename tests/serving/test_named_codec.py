"""Tensors of any signature come through the protocols' messages as they were sent, in whatever
form, padded on the way and cut back."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving import protocol, rest_codec
from parity_models.serving.grpc import codec as grpc_codec
from parity_models.serving.grpc.codec import FIELDS
from parity_models.serving.grpc.protos import ModelInferRequest, ModelInferResponse
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.remote import clients
from parity_models.tensors.signature import DATATYPES, Layout, Signature, cut, pack, padded
from rest_bodies import done
from signatures import axes_of, tensors, values

Sent = tuple[ServedModel, dict[str, NDArray[Any]]]

DATATYPE_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A model that gives what it takes, and queries for it, of sizes that are no buckets."""
    given = draw(tensors(texts=True))
    model = ServedModel("model", Signature(given, given, axes_of(*given)), max_rows=10)
    size, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    specs = Layout(tuple(each.at({"length": size}) for each in given)).tensors
    return model, {each.name: draw(values(each, rows)) for each in specs}


@given(
    st.lists(
        st.tuples(st.sampled_from(Source), st.sampled_from([0.0, 1e-5, 0.01, 1.0])), min_size=1
    )
)
def test_answers_say_sources_and_agreement(rows: list[tuple[Source, float]]) -> None:
    sources = [source for source, _ in rows]
    doubts = [doubt if source.stands_in else 0.0 for source, doubt in rows]
    result = Result(np.zeros(len(rows)), sources, doubts if any(doubts) else ())
    said = dict(result.headers)
    assert sorted(said["x-parm-source"].split(",")) == sorted(set(sources))
    assert float(said["x-parm-agreement"]) == 1 - max(doubts)
    row_by_row = result.parameters
    assert row_by_row["source"] == ",".join(sources)
    assert ("agreement" in row_by_row) == any(each.stands_in for each in sources)
    for agreement, doubt in zip(row_by_row.get("agreement", "").split(","), doubts, strict=False):
        assert not agreement or float(agreement) == 1 - doubt


@given(requests(), st.booleans(), st.booleans())
@settings(max_examples=80)
def test_over_rest_as_json_or_binary(sent: Sent, binary: bool, alone: bool) -> None:
    model, queries = sent
    output = model.signature.outputs[-1].name
    body, headers = protocol.write_request(queries, (output,) if alone else (), binary=binary)
    asked = rest_codec.read_request(body, headers.get(protocol.HEADER_LENGTH), model)
    rows = done(asked.read_rows())
    model.signature.kind_of(rows[0, ...])
    sources = [Source.MODEL] * len(rows)
    head, data = done(rest_codec.write_response(asked, Result(rows, sources)))
    answer = protocol.read_response(b"".join((head, *data)), str(len(head)) if data else None)
    assert answer.sources(len(sources)) == tuple(sources)
    assert [each.name for each in answer.outputs] == ([output] if alone else list(queries))
    for each in answer.outputs:
        assert each.array().dtype == queries[each.name].dtype
        np.testing.assert_array_equal(each.array(), queries[each.name])


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
            request.raw_input_contents.append(bytes(pack(array)))
        else:
            contents = getattr(tensor.contents, FIELDS[each.datatype])
            flat = array.ravel().tolist()
            contents.extend([text.encode() for text in flat] if each.is_text else flat)
    asked = grpc_codec.read_request(request, list(request.raw_input_contents), model)
    rows = done(asked.read_rows())
    sources = [Source.MODEL] * len(rows)
    answer = ModelInferResponse.FromString(
        done(grpc_codec.write_response(asked, Result(rows, sources)))
    )
    for i, output in enumerate(answer.outputs):
        array = queries[output.name]
        if raw:
            content = answer.raw_output_contents[i]
            found = protocol.array_from_bytes(content, output.datatype, array.shape, "it")
        else:
            given = getattr(output.contents, FIELDS[output.datatype])
            is_text = output.datatype == "BYTES"
            found = np.array([each.decode() for each in given] if is_text else given, array.dtype)
        assert tuple(output.shape) == array.shape
        np.testing.assert_array_equal(found.reshape(array.shape), array)


@given(requests())
@settings(max_examples=80)
def test_to_a_worker_and_back(sent: Sent) -> None:
    model, queries = sent
    signature = model.signature
    sizes = [
        queries[each.name].shape[1 + at] for each in signature.inputs for at in each.axes.values()
    ][: len(signature.axes)]
    rows = padded(queries, signature, sizes)
    layout = signature.kind_of(rows[0, ...]).input
    # Rows of a unit come from different requests.
    message = b"".join(bytes(pack(rows[i, ...])) for i in range(len(rows)))
    assert message == bytes(pack(rows))
    found = cut(layout.unpack(message, len(rows)), signature, sizes)
    for name, array in queries.items():
        np.testing.assert_array_equal(found[name], array)


@given(requests())
@settings(max_examples=80)
def test_over_v1_to_an_upstream_that_answers_what_it_is_asked(sent: Sent) -> None:
    _, queries = sent
    rows = json.loads(clients.write_predict(queries))["instances"]
    columns = clients.read_predictions(json.dumps({"predictions": rows}).encode(), list(queries))
    for name, array in queries.items():
        datatype = DATATYPE_NAMES[array.dtype]
        found = protocol.array_from_json(columns[name], datatype, array.shape, name)
        np.testing.assert_array_equal(found, array)
