"""Exports share the table of operators, and nobody else does."""

import operator

from torch.onnx._internal.exporter._registration import ONNXRegistry

from parity_models.models.export import export_onnx
from parity_models.models.exporter_operators import operators_known
from parity_models.models.networks import build_network


def test_the_table_is_made_once_and_what_is_added_to_it_is_not_kept() -> None:
    with operators_known():
        first, second = ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib()
        assert first.functions == second.functions
        first.register_op(operator.pow, lambda x, y: x)
        third = ONNXRegistry.from_torchlib()
    ways = first.functions.pop(operator.pow)
    assert third.functions.pop(operator.pow, []) == [each for each in ways if not each.is_custom]
    assert all(
        one is other
        for target, those in third.functions.items()
        for one, other in zip(those, second.functions[target], strict=True)
    )


def test_exports_are_what_they_are_without_it() -> None:
    network = build_network("resnet-small@0.05", (1, 8, 8), (10,)).eval()
    original = ONNXRegistry.__dict__["from_torchlib"]
    shared = [export_onnx(network, (1, 8, 8)) for _ in range(2)]
    assert ONNXRegistry.__dict__["from_torchlib"] is original
    assert shared[0] == shared[1]
