"""Networks for named inputs: which queries they take, and what is served of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnx_models import output_of
from parity_models.errors import TrainingError
from parity_models.models.export import export
from parity_models.models.networks import NETWORKS, NamedNetwork
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.queried import Queried, describe
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import take
from parity_models.models.signature import Axis, Signature, Tensor
from text_models import WORDS, texts

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
LENGTH = {"length": Axis((4, 8))}
TEXT = (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",)))
FEATURES = (
    Tensor("user", "INT32", ()),
    Tensor("kinds", "INT64", (3,)),
    Tensor("dense", "FP16", (2, 2)),
    Tensor("balance", "INT64", (1,)),
)
OUTPUT = (Tensor("out", "FP32", (5,)),)
QUERIES: dict[str, tuple[tuple[Tensor, ...], Mapping[str, NDArray[Any]]]] = {
    "text": (TEXT, texts(40, 8)),
    "features": (
        FEATURES,
        {
            "user": RNG.integers(0, 9, 40).astype(np.int32),
            "kinds": RNG.integers(0, 5, (40, 3)),
            "dense": RNG.normal(5, 3, (40, 2, 2)).astype(np.float16),
            "balance": RNG.integers(-(10**6), 10**6, (40, 1)),
        },
    ),
}


def signature_of(name: str) -> Signature:
    return Signature(QUERIES[name][0], OUTPUT, LENGTH if name == "text" else {})


def built(name: str, told: Queried, outputs: tuple[int, ...] = (5,)) -> NamedModule:
    kind, options = NETWORKS.parse(name)
    assert issubclass(kind, NamedNetwork)
    torch.manual_seed(0)
    module = kind.build_named(options, told, outputs)
    for weights in module.parameters():  # as if they were learned
        torch.nn.init.normal_(weights, std=0.3)
    return module.eval()


@pytest.mark.parametrize("name", QUERIES)
def test_what_is_served_says_what_was_trained_for_any_batch_and_any_value(name: str) -> None:
    inputs, arrays = QUERIES[name]
    signature = signature_of(name)
    module = built(name, describe(arrays, signature))
    served = OnnxModel(
        export(module.served(), signature.inputs, signature.outputs[0].name), signature=signature
    )
    with torch.no_grad():
        said = module(*(torch.from_numpy(arrays[each.name]) for each in inputs)).numpy()
    np.testing.assert_allclose(output_of(served, arrays), said, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        output_of(served, take(arrays, slice(1))),
        said[:1],
        rtol=1e-3,
        atol=1e-3,
    )
    strange = {each: array * 3 + 1 for each, array in arrays.items()}
    assert np.isfinite(output_of(served, strange)).all()


@pytest.mark.parametrize("name", QUERIES)
def test_networks_take_the_queries_that_they_are_for(name: str) -> None:
    arrays = QUERIES[name][1]
    told = describe(arrays, signature_of(name))
    for other in QUERIES:
        kind = NETWORKS.find(other)
        assert issubclass(kind, NamedNetwork)
        assert kind.takes(told) == (other == name)
        if other != name:
            with pytest.raises(TrainingError, match=f"{other} takes"):
                built(other, told)


def test_a_network_for_named_inputs_is_none_for_images() -> None:
    kind, options = NETWORKS.parse("text")
    with pytest.raises(TrainingError, match="text takes queries of named inputs"):
        kind.build(options, (1, 8, 8), (10,), (1, 1))


def test_words_begin_with_the_vectors_of_the_deployed_model() -> None:
    table = RNG.normal(size=(WORDS, 6)).astype(np.float32)
    told = describe(texts(40, 8), signature_of("text"))
    ids = replace(told[0], table=table)
    module = built("text@units=3", replace(told, inputs=(ids, told[1])))
    assert sum(weights.shape == (WORDS, 6) for weights in module.parameters()) == 0
    assert "table" not in module.state_dict()
    np.testing.assert_array_equal(module.get_buffer("table").numpy(), table)
