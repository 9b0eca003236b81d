"""A deployed transformer's layers are found; they say what it says, and answer k at once."""

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
from parity_models.models.networks import NETWORKS, GroupNetwork, NamedNetwork
from parity_models.models.networks.encoder import Block
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.own_transformer import Shallow
from parity_models.models.networks.queried import Queried, describe
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.onnx_tables import find_tables
from parity_models.models.own_encoder import with_encoder
from parity_models.models.queries import pad
from parity_models.models.signature import Axis, Signature

pytestmark = pytest.mark.slow


def told(content: bytes, signature: Signature = SIGNATURE) -> Queried:
    queried = describe(sentences(50), TAKEN, find_tables(content, ["ids"]))
    return with_encoder(queried, content, signature, GIVEN.name)


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
    assert queried[0].encoder is None
    for kind in NETWORKS:
        if kind.name in ("own-transformer", "superposition"):
            assert issubclass(kind, NamedNetwork | GroupNetwork)
            assert not kind.takes(queried)
    with pytest.raises(TrainingError, match="of a model whose layers it found"):
        backup(queried, 1)


def test_positions_are_found_beyond_those_that_the_model_is_watched_with() -> None:
    longer = Signature(TAKEN, (GIVEN,), {"length": Axis((LENGTH, 50))})
    encoder = told(exported("sentence"), longer)[0].encoder
    assert encoder is not None
    assert len(encoder.positions) == 50


def test_a_superposition_gives_each_slot_a_prediction_of_all_of_them() -> None:
    queried = told(exported("sentence"))
    kind, options = NETWORKS.parse("superposition")
    assert issubclass(kind, GroupNetwork)
    torch.manual_seed(0)
    module = kind.build_group(options, queried, (CLASSES,), 2).eval()
    ids, mask = (torch.from_numpy(each).unflatten(0, (-1, 2)) for each in sentences(8).values())
    with torch.no_grad():
        said = module(ids, mask)
        assert said.shape == (4, 2, CLASSES)
        other = ids.clone()
        other[:, 1] = other[:, 1].flip(0) * mask[:, 1]
        assert not torch.allclose(module(other, mask)[:, 0], said[:, 0])
        # What is padding in a slot adds nothing to the others.
        padding = torch.where(mask == 0, 7, ids)
        torch.testing.assert_close(module(padding, mask), said)
        assert module(ids * 0, mask * 0).isfinite().all()


def test_a_superposition_is_no_network_for_one_query() -> None:
    with pytest.raises(TrainingError, match="superposition answers several queries"):
        NETWORKS.parse("superposition")[0].build(None, (4,), (2,), (1, 1))


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
    with pytest.raises(UserError, match="wide must be"):
        NETWORKS.parse("own-transformer@1,wide=0")
