"""Learned coders: they encode and decode alike on arrays of both kinds, and read their weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from parity_models.codes import Code, CodeSpec
from parity_models.errors import UndecodableError
from parity_models_lab.learned import JointTraining

LEARNED = "parity_models_lab.learned:"
SHAPES = (1, 8, 8), (10,)


@pytest.mark.parametrize("encoder", ["MLPEncoder", "ConvolutionalEncoder"])
def test_weights_that_were_saved_are_served(encoder: str, tmp_path: Path) -> None:
    spec = CodeSpec(LEARNED + encoder, f"{LEARNED}MLPDecoder", 2, r=2)
    joint = JointTraining(spec, tmp_path / "coders")
    code = Code(joint.spec, *SHAPES)
    network = joint("linear", code).make()
    parameters = dict(network.named_parameters())
    trained = [name for name in parameters if "coders." in name]
    coders = {name.partition("coders.")[2].partition(".")[0] for name in trained}
    assert coders == {"encoder", "decoder"}
    with torch.no_grad():
        for name in trained:
            parameters[name].add_(0.01)
    joint.save()
    queries = np.random.default_rng(0).normal(size=(2, 3, *SHAPES[0])).astype(np.float32)
    tensors = [{"input": torch.from_numpy(each)} for each in queries]
    learned = code.encode(tensors)[1]["input"]
    assert learned.requires_grad
    served = Code(joint.spec, *SHAPES)
    parity = served.encode([{"input": each} for each in queries])[1]["input"]
    np.testing.assert_allclose(parity, learned.detach().numpy(), rtol=1e-4, atol=1e-5)
    predictions = np.random.default_rng(1).normal(size=(2, 3, 10)).astype(np.float32)
    decoded = served.decode([None, predictions[0]], [predictions[1], None])
    as_tensors = [None if each is None else torch.from_numpy(each) for each in predictions]
    expected = code.decode([None, as_tensors[0]], [as_tensors[1], None])
    np.testing.assert_allclose(decoded[0], expected[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UndecodableError):
        served.decode([None, None], [predictions[0], None])
