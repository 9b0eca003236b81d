"""Queries of several inputs are encoded input by input, whatever their types and lengths."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError
from parity_models.models.signature import Axis, Signature, Tensor
from signatures import axes_of, tensors, values

SCORES = (Tensor("scores", "FP32", (3,)),)


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    inputs = draw(tensors())
    return Signature(inputs, SCORES, axes_of(*inputs))


def code_for(signature: Signature, encoder: str, k: int = 2, r: int = 1, **options: Any) -> Code:
    decoder = "subtraction" if encoder == "sum" else "separate"
    spec = CodeSpec(encoder, decoder, k, r, encoder_options=options)
    return Code(spec, {each.name: each.shape for each in signature.inputs}, (3,))


@given(signatures(), st.integers(2, 4), st.integers(1, 2), st.sampled_from([2, 5]), st.data())
@settings(max_examples=60)
def test_a_stack_along_a_new_axis_holds_each_query_in_its_slot(
    signature: Signature, k: int, r: int, length: int, data: st.DataObject
) -> None:
    code = code_for(signature, "stack", k, r, new_axis=True)
    layout = signature.kind([length] * len(signature.axes)).input
    batch = data.draw(st.sampled_from([None, 3]))
    queries = []
    for _ in range(k):
        drawn = {each.name: data.draw(values(each, batch or 1)) for each in layout.tensors}
        queries.append(drawn if batch else {name: each[0, ...] for name, each in drawn.items()})
    parities = code.encode(queries)
    assert code.parity_shapes == {each.name: (k, *each.shape) for each in signature.inputs}
    for j in range(r):
        found = parities[j]
        for slot, query in enumerate(queries):
            for name, wanted in query.items():
                rank = wanted.ndim - (1 if batch else 0)
                in_slot = np.take(found[name], slot, axis=found[name].ndim - rank - 1)
                np.testing.assert_array_equal(in_slot, wanted)


def test_a_sum_adds_floating_point_inputs_and_refuses_ids() -> None:
    pair = Signature((Tensor("x", "FP32", (2,)), Tensor("y", "FP64", ())), SCORES)
    rows = pair.smallest.input.draw(np.random.default_rng(0), 2)
    parity = code_for(pair, "sum").encode(
        [{name: each[i] for name, each in rows.items()} for i in (0, 1)]
    )[0]
    for name in "xy":
        np.testing.assert_allclose(parity[name], rows[name].sum(axis=0))
    text = Signature((Tensor("x", "FP32", (2,)), Tensor("ids", "INT64", (2,))), SCORES)
    with pytest.raises(CodeError, match=r"of input 'ids': the sum encoder .* floating point"):
        code_for(text, "sum").encode([text.smallest.input.draw(np.random.default_rng(0), 1)] * 2)


@pytest.mark.parametrize(
    ("encoder", "options", "reason"),
    [
        ("stack", {}, "of input 'ids': the stack encoder joins queries along an axis of no fixed"),
        ("stack", {"new_axis": True, "axis": 3}, "have no axis 3"),
        ("concatenation", {}, "concatenation needs images"),
    ],
)
def test_refusals_name_the_input(encoder: str, options: dict[str, Any], reason: str) -> None:
    text = Signature((Tensor("ids", "INT64", ("length",)),), SCORES, {"length": Axis((4,))})
    with pytest.raises(CodeError, match=reason):
        code_for(text, encoder, **options)
