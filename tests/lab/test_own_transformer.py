"""A deployed transformer's layers are found; they say what it says."""

import numpy as np
import pytest
import torch

from encoder_models import (
    ALIKE,
    BLOCKS,
    CLASSES,
    GIVEN,
    LENGTH,
    SIGNATURE,
    TAKEN,
    UNLIKE,
    WORDS,
    exported,
    sentences,
)
from onnx_models import output_of
from parity_models.errors import TrainingError, UserError
from parity_models.models.export import export
from parity_models.models.networks import NETWORKS, NamedNetwork
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.queried import Queried, describe
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import pad
from parity_models.models.signature import Axis, Signature
from parity_models_lab.networks.own_transformer import Block, OwnTransformer, Shallow, encoder_of

pytestmark = pytest.mark.slow


def told(content: bytes, signature: Signature = SIGNATURE) -> Queried:
    return describe(sentences(50), signature, content, GIVEN.name)


def backup(queried: Queried, layers: int) -> NamedModule:
    kind, options = NETWORKS.parse(f"own-transformer@{layers}")
    assert issubclass(kind, NamedNetwork)
    return kind.build_named(options, queried, (CLASSES,)).eval()


@pytest.mark.parametrize("name", ALIKE)
def test_all_blocks_say_what_the_model_says_before_they_are_trained(name: str) -> None:
    content = exported(name)
    queried = told(content)
    module = backup(queried, BLOCKS)
    queries = sentences(100, seed=1)
    with torch.no_grad():
        said = module(*(torch.from_numpy(each) for each in queries.values())).numpy()
    rows = pad(queries, SIGNATURE, [LENGTH])
    model = OnnxModel(content, signature=SIGNATURE)
    np.testing.assert_allclose(said, output_of(model, rows), rtol=1e-3, atol=2e-3)
    served = OnnxModel(
        export(module.served(), SIGNATURE.inputs, SIGNATURE.outputs[0].name), signature=SIGNATURE
    )
    np.testing.assert_allclose(output_of(served, rows), said, rtol=1e-3, atol=2e-3)
    beyond = {**queries, "ids": queries["ids"] + WORDS}  # ids that there are not
    assert np.isfinite(output_of(served, pad(beyond, SIGNATURE, [LENGTH]))).all()
    shallow = backup(queried, 1)
    assert sum(each.numel() for each in shallow.parameters()) < sum(
        each.numel() for each in module.parameters()
    )
    with pytest.raises(TrainingError, match="has 2 blocks, not 3: choose own-transformer@2"):
        backup(queried, 3)


@pytest.mark.parametrize("name", UNLIKE)
def test_other_layers_are_not_taken_for_an_encoder(name: str) -> None:
    content = exported(name)
    queried = told(content)
    assert not OwnTransformer.takes(queried)
    with pytest.raises(TrainingError, match="of a model whose layers it found"):
        backup(queried, 1)


def test_positions_are_found_beyond_those_that_the_model_is_watched_with() -> None:
    longer = Signature(TAKEN, (GIVEN,), {"length": Axis((LENGTH, 50))})
    encoder = encoder_of(told(exported("sentence"), longer))
    assert encoder is not None
    assert len(encoder.positions) == 50


def test_a_share_of_each_perceptron_is_kept_those_units_that_weigh_most() -> None:
    queried = told(exported("sentence"))
    kind, options = NETWORKS.parse("own-transformer@2,wide=0.5")
    assert issubclass(kind, NamedNetwork)
    thin = kind.build_named(options, queried, (CLASSES,)).eval()
    whole = backup(queried, BLOCKS)
    assert isinstance(thin, Shallow)
    assert isinstance(whole, Shallow)
    queries = [torch.from_numpy(each) for each in sentences(100, seed=1).values()]
    for kept, was in zip(thin.encoder.blocks, whole.encoder.blocks, strict=True):
        assert isinstance(kept, Block)
        assert isinstance(was, Block)
        units = was.wide.out_features
        assert kept.wide.out_features == kept.narrow.in_features == units // 2
        weighs = was.wide.weight.norm(dim=1) * was.narrow.weight.norm(dim=0)
        least = (kept.wide.weight.norm(dim=1) * kept.narrow.weight.norm(dim=0)).min()
        assert (weighs >= least * (1 - 1e-6)).sum() == units // 2
    with torch.no_grad():
        said, wanted = thin(*queries), whole(*queries)
        # What is taken off adds up to nothing where those units are silenced.
        for kept, was in zip(thin.encoder.blocks, whole.encoder.blocks, strict=True):
            assert isinstance(kept, Block)
            assert isinstance(was, Block)
            gone = ~torch.isin(was.wide.weight[:, 0], kept.wide.weight[:, 0])
            was.narrow.weight[:, gone] = 0
        assert not torch.allclose(said, wanted)
        torch.testing.assert_close(said, whole(*queries), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="wide of own-transformer must be"):
        NETWORKS.parse("own-transformer@1,wide=0")
