"""How long networks would take beside a deployed model F, before there are any to measure.

Of each family the narrowest network and the usual one are measured in ONNX Runtime. Others of the
family lie between or beyond, by how much they compute.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.export import export, floats
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, build_network, family
from parity_models.models.networks.network import Scalable
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.parity_network import parity_network

Shape = tuple[int, ...]
Times = Callable[[Sequence[OnnxModel]], list[float]]
"""Milliseconds that each of some models takes for a batch, measured side by side."""

WIDTHS = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Multiples of channels or hidden units that are tried of a network which has them."""


class Costs:
    """Times of networks for a deployed model's queries, as shares of that model's time.

    `families` are the networks that are measured, the cheapest first. Those that cannot take the
    queries have no cost.
    """

    def __init__(
        self, deployed: OnnxModel, families: Sequence[str], times: Times = inference_times
    ) -> None:
        self.query_shape: Shape = deployed.signature.input.shape
        self.output_shape: Shape = deployed.signature.output.shape
        names = [name for each in families for name in _measured(each)]
        with torch.random.fork_rng(devices=[]):
            models = {
                name: OnnxModel(
                    export(
                        build_network(name, self.query_shape, self.output_shape),
                        [floats(self.query_shape)],
                    )
                )
                for name in names
                if self._build(name, None) is not None
            }
        self.deployed_ms, *measured = times([deployed, *models.values()])
        self._ms = dict(zip(models, measured, strict=True))
        self._work = {name: self._computes(name, None) or 0 for name in models}

    def share(self, network: str, code: CodeSpec | None) -> float | None:
        """The time of one run of `network`, for the parity queries of `code` or single queries.

        None for a network that cannot take those, or is of no family that was measured.
        """
        usual = family(network)
        work = self._computes(network, code) if usual in self._ms else None
        if work is None:
            return None
        narrow = _measured(usual)[0]
        base, base_work = self._ms[narrow], self._work[narrow]
        more = self._work[usual] - base_work
        if more <= 0:
            return base * max(1.0, work / max(1, base_work)) / self.deployed_ms
        slope = max(0.0, self._ms[usual] - base) / more
        return (base + slope * max(0, work - base_work)) / self.deployed_ms

    def _computes(self, network: str, code: CodeSpec | None) -> int | None:
        """Operations of one run."""
        module = self._build(network, code)
        if module is None:
            return None
        shape = self.query_shape
        if code is not None:
            shape = Code(code, self.query_shape, self.output_shape).parity_shape
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape, device="meta"))
        return int(counter.get_total_flops())

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


def _measured(name: str) -> tuple[str, ...]:
    """The networks of a family that are measured: the narrowest, where there is one, and the usual
    one."""
    if issubclass(NETWORKS.find(name), Scalable):
        return f"{name}@{WIDTHS[0]:g}", name
    return (name,)
