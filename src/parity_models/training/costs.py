"""How long networks would take beside a deployed model F, before there are any to measure.

One network of each family is measured in ONNX Runtime. Others of the family take as much longer or
shorter as they compute more or less.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.export import export_onnx
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import build_network, family
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.parity_network import parity_network

Shape = tuple[int, ...]
Times = Callable[[Sequence[OnnxModel]], list[float]]
"""Milliseconds that each of some models takes for a batch, measured side by side."""

LAYER = 0.001
"""Milliseconds that a layer takes at least, however little it computes."""


class Costs:
    """Times of networks for a deployed model's queries, as shares of that model's time.

    `families` are the networks that are measured, at their full width, the cheapest first. Those
    that cannot take the queries have no cost.
    """

    def __init__(
        self, deployed: OnnxModel, families: Sequence[str], times: Times = inference_times
    ) -> None:
        self.query_shape: Shape = deployed.input.shape
        self.output_shape: Shape = deployed.output.shape
        built = {name: self._build(name, None) for name in families}
        with torch.random.fork_rng(devices=[]):
            models = {
                name: OnnxModel(
                    export_onnx(
                        build_network(name, self.query_shape, self.output_shape), self.query_shape
                    )
                )
                for name, network in built.items()
                if network is not None
            }
        self.deployed_ms, *measured = times([deployed, *models.values()])
        self._ms = dict(zip(models, measured, strict=True))
        self._work = {name: (self._computes(name, None) or (0, 0))[0] for name in models}
        self._least = next(iter(self._ms), None)

    def share(self, network: str, code: CodeSpec | None) -> float | None:
        """The time of one run of `network`, for the parity queries of `code` or single queries.

        None for a network that cannot take those, or is of no family that was measured.
        """
        name = family(network)
        if name not in self._ms or self._least is None:
            return None
        computed = self._computes(network, code)
        if computed is None:
            return None
        work, layers = computed
        # What takes time besides computing is in the time of the cheapest.
        base, base_work = self._ms[self._least], self._work[self._least]
        more = self._work[name] - base_work
        if more <= 0:
            return base * max(1.0, work / max(1, base_work)) / self.deployed_ms
        slope = max(0.0, self._ms[name] - base) / more
        least = min(base + LAYER * layers, self._ms[name])
        return max(least, base + slope * (work - base_work)) / self.deployed_ms

    def _computes(self, network: str, code: CodeSpec | None) -> tuple[int, int] | None:
        """Operations of one run, and the layers that they are in."""
        module = self._build(network, code)
        if module is None:
            return None
        layers = sum(1 for each in module.modules() if next(each.children(), None) is None)
        shape = self.query_shape
        if code is not None:
            shape = Code(code, self.query_shape, self.output_shape).parity_shape
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape, device="meta"))
        return int(counter.get_total_flops()), layers

    def _build(self, network: str, code: CodeSpec | None) -> nn.Module | None:
        """The network without weights."""
        try:
            with torch.device("meta"):
                if code is None:
                    return build_network(network, self.query_shape, self.output_shape)
                spec = Code(code, self.query_shape, self.output_shape)
                return parity_network(network, spec).build()
        except TrainingError:
            return None
