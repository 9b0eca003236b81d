"""Codes recover what they promise, refuse the rest, and agree between NumPy and torch."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError, UndecodableError
from parity_models.tensors.signature import Axis, Signature, Tensor
from signatures import axes_of, tensors, values


def encode(code: Code, queries: Sequence[Any]) -> list[Any]:
    """The r parity queries of k queries of one input."""
    return [each["input"] for each in code.encode([{"input": query} for query in queries])]


def erasures(k: int, most: int) -> list[tuple[int, ...]]:
    return [lost for size in range(1, most + 1) for lost in combinations(range(k), size)]


@st.composite
def ks_and_rs(draw: st.DrawFn) -> tuple[int, int]:
    k = draw(st.integers(2, 6))
    return k, draw(st.integers(1, min(k, 3)))


@given(ks_and_rs(), st.integers(0, 2**32 - 1))
def test_sum_and_subtraction_recover_every_erasure(k_and_r: tuple[int, int], seed: int) -> None:
    k, r = k_and_r
    rng = np.random.default_rng(seed)
    code = Code(CodeSpec("sum", "subtraction", k, r), (5,), (3,))
    weights = rng.normal(size=(5, 3)).astype(np.float32)
    queries = list(rng.normal(size=(k, 7, 5)).astype(np.float32))
    predictions = [x @ weights for x in queries]
    parity_outputs = [parity @ weights for parity in encode(code, queries)]
    for lost in erasures(k, r):
        for here in combinations(range(r), len(lost)):
            decoded = code.decode(
                [None if i in lost else p for i, p in enumerate(predictions)],
                [p if j in here else None for j, p in enumerate(parity_outputs)],
            )
            assert set(decoded) == set(lost)
            for i in lost:
                assert decoded[i].dtype == np.float32
                np.testing.assert_allclose(decoded[i], predictions[i], rtol=0, atol=2e-3)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_subtraction_from_probabilities_gives_the_nearest_ones(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = Code(CodeSpec("sum", "subtraction", 2), (4,), (n,), probabilities=True)
    here = rng.dirichlet(np.ones(n), 50).astype(np.float32)
    output = rng.normal(size=(50, n)).astype(np.float32) * 3
    found = code.decode([None, here], [output])[0]
    assert found.dtype == np.float32
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    off = np.linalg.norm(found - (output - here), axis=-1)
    for other in rng.dirichlet(np.ones(n), (20, 50)):
        assert (off <= np.linalg.norm(other - (output - here), axis=-1) + 1e-5).all()
    known = rng.dirichlet(np.ones(n), 50).astype(np.float32)
    np.testing.assert_allclose(code.decode([None, here], [known + here])[0], known, atol=1e-5)


@given(ks_and_rs(), st.integers(0, 2**32 - 1))
def test_separate_reads_every_erasure_off_any_parity(k_and_r: tuple[int, int], seed: int) -> None:
    k, r = k_and_r
    rng = np.random.default_rng(seed)
    code = Code(CodeSpec("stack", "separate", k, r), (5,), (2, 3))
    predictions = list(rng.normal(size=(k, 7, 2, 3)).astype(np.float32))
    targets = [code.targets(predictions, j) for j in range(r)]
    assert targets[0].shape == (7, *code.parity_output_shape)
    for lost in erasures(k, k):
        for j in range(r):
            outputs = [target if i == j else None for i, target in enumerate(targets)]
            decoded = code.decode(
                [None if i in lost else p for i, p in enumerate(predictions)], outputs
            )
            assert set(decoded) == set(lost)
            for i in lost:
                np.testing.assert_array_equal(decoded[i], predictions[i])


@given(
    ks_and_rs(),
    st.sampled_from([("sum", "subtraction"), ("stack", "separate"), ("stack", "subtraction")]),
    st.data(),
)
def test_decodable_says_exactly_what_decode_does(
    k_and_r: tuple[int, int], pair: tuple[str, str], data: st.DataObject
) -> None:
    k, r = k_and_r
    code = Code(CodeSpec(*pair, k, r), (2,), (3,))
    available = tuple(data.draw(st.lists(st.booleans(), min_size=k, max_size=k)))
    parities = tuple(data.draw(st.lists(st.booleans(), min_size=r, max_size=r)))
    predictions = [np.ones(3, np.float32) if here else None for here in available]
    outputs = [np.ones(code.parity_output_shape, np.float32) if here else None for here in parities]
    decodable = code.decodable(available, parities)
    missing = {i for i, here in enumerate(available) if not here}
    assert {i for i, yes in enumerate(decodable) if yes} in (missing, set())
    if missing and not any(decodable):
        with pytest.raises(UndecodableError, match="cannot reconstruct"):
            code.decode(predictions, outputs)
    else:
        assert set(code.decode(predictions, outputs)) == missing


SHAPES = st.tuples(st.integers(1, 4), st.integers(3, 14), st.integers(4, 14))


@settings(max_examples=60)
@given(
    st.sampled_from([2, 3, 4, 6, 8, 9]),
    st.sampled_from(["sum", "concatenation", "stack"]),
    st.integers(1, 2),
    SHAPES,
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
)
def test_numpy_and_torch_encode_alike(
    k: int, encoder: str, r: int, shape: tuple[int, int, int], batch_rank: int, seed: int
) -> None:
    code = Code(CodeSpec(encoder, "subtraction", k, r), shape, (3,))
    rng = np.random.default_rng(seed)
    batch = (2, 3)[:batch_rank]
    queries = list(rng.normal(size=(k, *batch, *shape)).astype(np.float32))
    fresh = np.stack(encode(code, queries))
    assert fresh.shape == (r, *batch, *code.parity_shape)
    torches = torch.stack(encode(code, [torch.from_numpy(x) for x in queries]))
    np.testing.assert_allclose(torches.numpy(), fresh, rtol=1e-5, atol=1e-5)


@given(st.sampled_from([2, 3, 4, 6, 8, 9]), SHAPES, st.integers(0, 2**32 - 1))
def test_concatenation_keeps_tiles_means(k: int, shape: tuple[int, int, int], seed: int) -> None:
    code = Code(CodeSpec("concatenation", "separate", k), shape, (3,))
    values = np.random.default_rng(seed).normal(size=k).astype(np.float32)
    queries = [np.full(shape, value) for value in values]
    parity = encode(code, queries)[0]
    assert parity.shape == shape
    assert set(np.unique(parity.round(4))) == set(values.round(4))
    assert np.all(np.diff([np.isclose(parity, v, atol=1e-4).sum() > 0 for v in values]) == 0)


@pytest.mark.parametrize(
    ("spec", "shape", "reason"),
    [
        (CodeSpec("sum", "separate", 2), (4,), "tell the slots apart"),
        (CodeSpec("product", "separate", 2), (4,), "there are sum"),
        (CodeSpec("sum", "addition", 2), (4,), "there are subtraction"),
        (CodeSpec("sum", "subtraction", 1), (4,), "k must be 2 or more"),
        (CodeSpec("sum", "subtraction", 257), (4,), "k can be 256 at most"),
        (CodeSpec("sum", "subtraction", 2, 0), (4,), "r must be from 1"),
        (CodeSpec("sum", "subtraction", 2, 3), (4,), "r must be from 1"),
        (CodeSpec("concatenation", "separate", 5), (1, 28, 28), "not k=5"),
        (CodeSpec("concatenation", "separate", 2), (784,), "needs images"),
        (CodeSpec("concatenation", "separate", 4), (1, 1, 1), "cannot hold"),
        (CodeSpec("stack", "separate", 2, 1, {"axis": 3}), (4,), "no axis 3"),
        (CodeSpec("stack", "separate", 2), (), "no axis 0"),
        (
            CodeSpec("sum", "subtraction", 2, 1, {"axis": 0}),
            (4,),
            "is not an option of the encoder sum",
        ),
    ],
)
def test_senseless_codes_are_refused(spec: CodeSpec, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(CodeError, match=reason):
        Code(spec, shape, (10,))


def test_arrays_that_do_not_fit_are_refused_with_the_reason() -> None:
    code = Code(CodeSpec("sum", "subtraction", 2), (4,), (10,))
    x = np.zeros(4, np.float32)
    cases: list[tuple[list[NDArray[Any]], str]] = [
        ([x], "takes k=2 queries, got 1"),
        ([x, x.astype(np.float64)], "share shape and dtype"),
        ([x, np.zeros((1, 4), np.float32)], "share shape and dtype"),
        ([np.zeros(5, np.float32)] * 2, "queries have shape"),
        ([x.astype(np.int64)] * 2, "floating point"),
    ]
    for queries, reason in cases:
        with pytest.raises(CodeError, match=reason):
            encode(code, queries)
    with pytest.raises(CodeError, match="no input 'input'"):
        code.encode([{"image": x}] * 2)


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
    with pytest.raises(CodeError, match=r"input 'ids': the sum encoder .* floating point"):
        code_for(text, "sum").encode([text.smallest.input.draw(np.random.default_rng(0), 1)] * 2)


@pytest.mark.parametrize(
    ("encoder", "options", "reason"),
    [
        ("stack", {}, "input 'ids': the stack encoder joins queries along an axis of no fixed"),
        ("stack", {"new_axis": True, "axis": 3}, "have no axis 3"),
        ("concatenation", {}, "concatenation needs images"),
    ],
)
def test_refusals_name_the_input(encoder: str, options: dict[str, Any], reason: str) -> None:
    text = Signature((Tensor("ids", "INT64", ("length",)),), SCORES, {"length": Axis((4,))})
    with pytest.raises(CodeError, match=reason):
        code_for(text, encoder, **options)
