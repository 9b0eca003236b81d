"""Networks are built by name for any queries, and compute the same once they are exported."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor as Floats
from torch import nn

from onnx_models import graph_model, output_of
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.errors import TrainingError
from parity_models.tensors.queries import take
from parity_models.tensors.signature import Axis, Signature, Tensor
from parity_models.training.export import export, floats
from parity_models.training.networks import MLP, NETWORKS, Text, build_network
from parity_models.training.networks.network import EachSlot, Folded
from parity_models.training.networks.queried import Grid, Shape, describe, find_tables
from text_models import WORDS, texts


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """Return it in evaluation mode, with running statistics that are not the defaults."""
    network.train()(torch.randn(16, *shape))
    return network.eval()


def check_export(network: nn.Module, inputs: Shape, outputs: Shape) -> None:
    model = OnnxModel(export(network, [floats(inputs)]))
    for rows in (1, 2, 7):
        batch = torch.randn(rows, *inputs)
        with torch.no_grad():
            expected = network(batch).numpy()
        assert expected.shape == (rows, *outputs)
        np.testing.assert_allclose(output_of(model, batch.numpy()), expected, rtol=1e-4, atol=1e-5)


# Arrays


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "grid"),
    [
        ("linear", (3, 4, 5), (2, 10), (1, 1)),
        ("mlp", (1, 28, 28), (10,), (1, 1)),
        ("resnet-small", (1, 28, 28), (2, 10), (1, 2)),
        ("resnet18@0.03", (3, 70, 64), (4,), (1, 1)),
    ],
)
@pytest.mark.slow
def test_onnx_runtime_gives_the_same(name: str, inputs: Shape, outputs: Shape, grid: Grid) -> None:
    torch.manual_seed(0)
    check_export(settled(build_network(name, inputs, outputs, grid), *inputs), inputs, outputs)


@pytest.mark.parametrize(
    ("name", "inputs", "grid", "reason"),
    [
        ("perceptron", (4,), (1, 1), "[Tt]here are linear, mlp"),
        ("resnet-small", (784,), (1, 1), "takes images"),
        ("resnet-small", (1, 8, 8), (3, 3), "at least 12x12"),
        ("resnet18@0.25", (3, 28, 28), (4, 2), "at least 32x16"),
        ("resnet18@nan", (3, 28, 28), (1, 1), "width of resnet18 must be a number, above 0"),
        ("text", (1, 8, 8), (1, 1), "text takes one input of ids"),
        ("mine:Net", (784,), (1, 1), "which is not imported here"),
    ],
)
def test_networks_refuse_other_inputs(name: str, inputs: Shape, grid: Grid, reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        build_network(name, inputs, (10,), grid)


# One network in every slot


def slotwise(k: int, shape: Shape) -> EachSlot:
    torch.manual_seed(0)
    folded = Folded(k, shape, lambda each: build_network("resnet-small", each, (10,)))
    return EachSlot(folded, k, shape)


@pytest.mark.parametrize(("k", "shape"), [(3, (3, 9, 11)), (8, (1, 28, 28))])
@pytest.mark.slow
def test_slotwise_computes_the_same_in_onnx_runtime_for_any_batch(k: int, shape: Shape) -> None:
    stacked = (k * shape[0], *shape[1:])
    check_export(settled(slotwise(k, shape), *stacked), stacked, (k, 10))


def test_every_slot_depends_on_every_value_of_its_own_query_alone() -> None:
    network = settled(slotwise(3, (1, 9, 11)), 3, 9, 11)
    stacked = torch.randn(1, 3, 9, 11, requires_grad=True)
    outputs: Floats = network(stacked)
    for slot in range(3):
        (gradient,) = torch.autograd.grad(outputs[0, slot].sum(), stacked, retain_graph=True)
        for query, part in enumerate(gradient[0]):
            assert bool(part.any()) == (query == slot)
            assert bool(part.all()) == (query == slot)


# Records

IDS, MASK = Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",))


def signature_of(*inputs: Tensor) -> Signature:
    axes = {axis: Axis((4, 8)) for each in inputs for axis in each.axes}
    return Signature(inputs, (Tensor("out", "FP32", (5,)),), axes)


@pytest.mark.slow
def test_the_network_for_text_is_served_as_it_was_trained() -> None:
    inputs, arrays = (IDS, MASK), texts(40, 8)
    signature = signature_of(*inputs)
    queried = describe(arrays, signature)
    assert [each.name for each in NETWORKS if each.takes(queried)] == ["text"]
    with pytest.raises(TrainingError, match="takes"):
        MLP.build(MLP.Options(), queried, (5,))
    torch.manual_seed(0)
    module = Text.build(Text.Options(), queried, (5,))
    for weights in module.parameters():  # as if they were learned
        torch.nn.init.normal_(weights, std=0.3)
    module.eval()
    served = OnnxModel(export(module, inputs, "out"), signature=signature)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(arrays[each.name]) for each in inputs)).numpy()
    for rows in (slice(None), slice(1)):
        found = output_of(served, take(arrays, rows))
        np.testing.assert_allclose(found, expected[rows], rtol=1e-3, atol=1e-3)
    strange = {each: array * 3 + 1 for each, array in arrays.items()}
    assert np.isfinite(output_of(served, strange)).all()


def test_masks_and_constants_are_recognised() -> None:
    queries = texts(50, 8)
    arrays = {**queries, "segment": np.zeros_like(queries["ids"])}
    signature = signature_of(IDS, MASK, Tensor("segment", "INT64", ("length",)))
    queried = describe(arrays, signature)
    ids, mask, segment = queried.inputs
    assert ids.values == int(queries["ids"].max()) + 1
    assert [each.mask for each in queried.inputs] == [False, True, False]
    assert segment.constant
    assert not mask.constant
    assert Text.takes(queried)


@pytest.mark.parametrize("quantised", [False, True])
def test_the_embeddings_of_ids_are_found(quantised: bool) -> None:
    table = np.round(np.random.default_rng(0).normal(size=(WORDS, 4)) * 8).astype(np.float32) / 8
    constants: dict[str, Any] = {"table": table}
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["out"], keepdims=0, axes=[1]),
    ]
    if quantised:
        constants = {"whole": (table * 8 + 3).astype(np.int8), "scale": np.float32(1 / 8)}
        constants["zero"] = np.int8(3)
        nodes.insert(0, helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["table"]))
    ids, out = (TensorProto.INT32, ["n", "length"]), (TensorProto.FLOAT, ["n", 4])
    content = graph_model(nodes, {"ids": ids}, {"out": out}, constants, {"": 17})
    onnx.checker.check_model(content)
    found = find_tables(content, ["ids", "mask"])
    assert list(found) == ["ids"]
    np.testing.assert_allclose(found["ids"], table, atol=1e-6)
