"""What queries, and the deployed model's graph, tell of named inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from parity_models.errors import TrainingError
from parity_models.models.networks import NETWORKS, Text
from parity_models.models.networks.queried import describe, find_tables
from parity_models.models.signature import Axis, Signature, Tensor
from text_models import WORDS, texts

IDS, MASK = Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",))
SEGMENT = Tensor("segment", "INT64", ("length",))


def signature(*inputs: Tensor) -> Signature:
    axes = {axis: Axis((8,)) for each in inputs for axis in each.axes}
    return Signature(inputs, (Tensor("out", "FP32", (2,)),), axes)


def test_ids_masks_and_what_never_changes_are_told_apart() -> None:
    queries = texts(50, 8)
    arrays = {**queries, "segment": np.zeros_like(queries["ids"])}
    ids, mask, segment = told = describe(arrays, signature(IDS, MASK, SEGMENT))
    assert not ids.mask
    assert ids.values == int(queries["ids"].max()) + 1
    assert mask.mask
    assert segment.constant
    assert not segment.mask
    assert Text.takes(told)


def test_numbers_are_no_words() -> None:
    dense = Tensor("dense", "FP32", (3,))
    drawn = np.random.default_rng(0).random((9, 3), np.float32)
    told = describe({"dense": drawn}, signature(dense))
    assert told[0].mean is not None
    assert told[0].mean.shape == (3,)
    assert not Text.takes(told)
    _, options = NETWORKS.parse("text")
    with pytest.raises(TrainingError, match="text takes one input of ids"):
        Text.build_named(options, told, (2,))


@pytest.mark.parametrize("quantised", [False, True])
def test_the_table_that_ids_are_looked_up_in_is_found(quantised: bool) -> None:
    table = np.round(np.random.default_rng(0).normal(size=(WORDS, 4)) * 8).astype(np.float32) / 8
    whole = (table * 8 + 3).astype(np.int8)
    stored = [numpy_helper.from_array(table, "table")]
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["out"], keepdims=0, axes=[1]),
    ]
    if quantised:
        scales = (np.float32(1 / 8), np.int8(3))
        stored = [numpy_helper.from_array(whole, "whole")]
        stored += [
            numpy_helper.from_array(np.asarray(each), name)
            for each, name in zip(scales, ("scale", "zero"), strict=True)
        ]
        nodes.insert(0, helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["table"]))
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", "length"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        stored,
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(content)
    found = find_tables(content.SerializeToString(), ["ids", "mask"])
    assert list(found) == ["ids"]
    np.testing.assert_allclose(found["ids"], table, atol=1e-6)
