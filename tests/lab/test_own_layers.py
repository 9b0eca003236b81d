"""The deployed model's own layers are found in its graph, and answer for it, also in integers."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from byte_models import ALIKE, CLASSES, LENGTH, SIGNATURE, TAKEN, UNLIKE, VALUES, contents, exported
from onnx_models import output_of
from parity_models.errors import TrainingError
from parity_models.models.export import export
from parity_models.models.networks import NETWORKS, NamedNetwork
from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.queried import Queried, describe
from parity_models.models.onnx_model import OnnxModel
from parity_models_lab.networks.own_layers import Thinned, find_layers, layers_of

pytestmark = pytest.mark.slow


def told(content: bytes) -> Queried:
    return describe({TAKEN.name: contents(50)}, SIGNATURE, content, "scores")


def built(name: str, queried: Queried) -> NamedModule:
    kind, options = NETWORKS.parse(name)
    assert issubclass(kind, NamedNetwork)
    return kind.build_named(options, queried, (CLASSES,))


@pytest.mark.parametrize("name", ALIKE)
def test_own_layers_say_what_the_model_says_before_they_are_trained(name: str) -> None:
    content = exported(ALIKE[name]())
    module = built("own-layers", told(content)).eval()
    rows = contents(400, seed=1)
    model = OnnxModel(content, signature=SIGNATURE)
    with torch.no_grad():
        said = module(torch.from_numpy(rows)).numpy()
    assert (said.argmax(1) == output_of(model, rows).argmax(1)).mean() > 0.9
    served = OnnxModel(
        export(module.served(), SIGNATURE.inputs, SIGNATURE.outputs[0].name), signature=SIGNATURE
    )
    np.testing.assert_allclose(output_of(served, rows), said, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(output_of(served, rows[:1]), said[:1], rtol=1e-3, atol=1e-3)
    assert np.isfinite(output_of(served, 3 * rows + VALUES)).all()  # values that there are not


@pytest.mark.parametrize("name", UNLIKE)
def test_other_layers_are_not_taken_for_these(name: str) -> None:
    queried = told(exported(UNLIKE[name]()))
    assert layers_of(queried) is None
    with pytest.raises(TrainingError, match="own-layers takes"):
        built("own-layers", queried)


def test_a_model_that_looks_up_no_such_values_has_no_layers_that_are_found() -> None:
    content = exported(ALIKE["characters"]())
    assert find_layers(content, TAKEN.name, TAKEN.dtype, LENGTH, 10 * VALUES) is None


def test_fewer_maps_take_less_and_the_gradient_is_that_of_a_convolution() -> None:
    module = built("own-layers@0.5", told(exported(ALIKE["files"]())))
    assert isinstance(module, Thinned)
    kernel = module.kernel
    assert kernel.shape[0] == 8
    rows = torch.from_numpy(contents(70))
    module(rows).square().sum().backward()
    got = kernel.grad
    assert got is not None
    entering = torch.cat([module.enter(part.long()) for part in rows.split(32)])
    step = module.reach / 127
    entering = (entering / step).round().clamp(-128, 127) * step
    plain = module.rounded_kernel().detach().requires_grad_()
    largest = torch.nn.functional.conv1d(entering.transpose(1, 2), plain).amax(2)
    module.leave(largest + module.offset).square().sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(got, plain.grad, rtol=1e-3, atol=1e-4)


def test_it_learns_where_the_rest_is_trained_in_16_bits() -> None:
    module = built("own-layers@0.5", told(exported(ALIKE["files"]())))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(torch.from_numpy(contents(40))).float().square().sum()
    loss.backward()
    assert isinstance(module, Thinned)
    assert module.kernel.grad is not None
    assert module.kernel.grad.isfinite().all()
    assert module.kernel.grad.any()


def saturating(values: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """Products as processors without VNNI add them up: two at a time, in 16 bits (vpmaddubsw)."""
    pairs = values.astype(np.int64)[..., None] * weights.astype(np.int64)
    pairs = np.pad(pairs, [(0, 0), (0, len(weights) % 2), (0, 0)])
    sums = pairs[:, ::2] + pairs[:, 1::2]
    total: NDArray[np.int64] = np.clip(sums, -(2**15), 2**15 - 1).sum(axis=1)
    return total


def test_products_of_bytes_saturate_on_no_processor() -> None:
    content = exported(ALIKE["files"]())
    module = built("own-layers", told(content))
    graph = onnx.load_model_from_string(export(module.served(), SIGNATURE.inputs, "out")).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert products
    for node in products:
        weights = constants[node.input[1]]
        assert weights.dtype == np.int8
        rows = np.random.default_rng(0).choice([0, 255], (50, len(weights))).astype(np.uint8)
        rows = np.concatenate([rows, np.where(weights.T > 0, 255, 0).astype(np.uint8)])
        exact = rows.astype(np.int64) @ weights.astype(np.int64)
        np.testing.assert_array_equal(saturating(rows, weights), exact)
