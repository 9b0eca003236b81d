"""The stand-ins to try for a deployed model F, proposed by the time that networks would take.

Backups are proposed around F's time divided by 1, 1.5, 2, 4, 10 and 30, parity models around F's
time, for k = 2, 3 and 4, so that a backup of the same cost says what the code adds.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError, TrainingError
from parity_models.models.export import export, floats
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, build_network, family
from parity_models.models.networks.network import NamedModule, Scalable
from parity_models.models.networks.queried import Queried
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.training.candidates import Proposal
from parity_models.training.networks import backup_network, parity_network
from parity_models.training.teacher import Teacher

Shape = tuple[int, ...]
Times = Callable[[Sequence[OnnxModel]], list[float]]
"""Milliseconds that each of some models takes for a batch, measured side by side."""

DIVISORS = (1, 4, 10, 2, 30, 1.5)
"""F's time is divided by these, the most telling first."""

SLACK = 1.02
"""The factor by which measurements of equally fast models differ."""

NARROWEST = 0.45
"""A network that takes less than this share of the wanted time is not proposed for it."""

WIDTHS = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Multiples of channels or hidden units that are tried of a network which has them."""

CODES = (
    CodeSpec("stack", "separate", 2),
    CodeSpec("stack", "separate", 4),
    CodeSpec("stack", "separate", 3),
    CodeSpec("concatenation", "separate", 2),
    CodeSpec("sum", "subtraction", 2),
)
"""Codes that are tried, the most promising first."""


def ladder(query_shape: Shape) -> tuple[str, ...]:
    """Return the networks for queries of a shape, each slower than those before it, and better.

    All learn in minutes from some ten thousand queries.
    """
    queried = Queried.of(query_shape)
    return tuple(name for kind in NETWORKS for name in kind.proposals(queried))


def families(query_shape: Shape) -> tuple[str, ...]:
    """Return the same without widths, each once."""
    return tuple(dict.fromkeys(family(name) for name in ladder(query_shape)))


def fits(network: str, code: Code) -> bool:
    """Whether the network can take the parity queries of a code."""
    return _without_weights(network, code.query_shape, code.output_shape, code.spec) is not None


def _without_weights(
    network: str, query_shape: Shape, output_shape: Shape, code: CodeSpec | None
) -> nn.Module | None:
    try:
        with torch.device("meta"):
            if code is None:
                return build_network(network, query_shape, output_shape)
            return parity_network(network, Code(code, query_shape, output_shape)).make()
    except TrainingError:
        return None


class Costs:
    """Times of networks for a deployed model's queries, as shares of that model's time.

    Of each of `families`, the cheapest first, the narrowest network and the usual one are measured
    in ONNX Runtime. Others lie between or beyond, by how much they compute. Networks that cannot
    take the queries have no cost.
    """

    def __init__(
        self, deployed: OnnxModel, families: Sequence[str], times: Times = inference_times
    ) -> None:
        self.query_shape: Shape = deployed.signature.input.shape
        self.output_shape: Shape = deployed.signature.output.shape
        shapes = self.query_shape, self.output_shape
        names = [
            name
            for each in families
            for name in _measured(each)
            if _without_weights(name, *shapes, None) is not None
        ]
        with torch.random.fork_rng(devices=[]):
            models = [
                OnnxModel(export(build_network(name, *shapes), [floats(self.query_shape)]))
                for name in names
            ]
        self.deployed_ms, *measured = times([deployed, *models])
        self._ms = dict(zip(names, measured, strict=True))
        self._work = {name: self._computes(name, None) or 0 for name in names}

    def share(self, network: str, code: CodeSpec | None) -> float | None:
        """Return the time of one run of `network`, for parity queries of `code` or single queries.

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
        """Return the operations of one run."""
        module = _without_weights(network, self.query_shape, self.output_shape, code)
        if module is None:
            return None
        shape = self.query_shape
        if code is not None:
            shape = Code(code, self.query_shape, self.output_shape).parity_shape
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape, device="meta"))
        return int(counter.get_total_flops())


def _measured(name: str) -> tuple[str, ...]:
    """Return the networks of a family that are measured: the narrowest, if any, and the usual."""
    if issubclass(NETWORKS.find(name), Scalable):
        return f"{name}@{WIDTHS[0]:g}", name
    return (name,)


def propose(costs: Costs) -> list[Proposal]:
    """Propose stand-ins for the model that `costs` are relative to, the most promising first.

    Each is the widest network of its family that does not take longer than it may. The fastest
    network there is is always among them, even where it is slower than F.
    """
    backups = [list(_around(costs, 1 / divisor, None)) for divisor in DIVISORS]
    coded = [list(_around(costs, 1.0, code))[:1] for code in _codes(costs)]
    first = [each[0] for each in backups if each]
    others = [each[1] for each in backups if len(each) > 1]
    parity = [each[0] for each in coded if each]
    fastest = families(costs.query_shape)[0]
    least = Proposal(fastest, None, costs.share(fastest, None) or 1.0)
    rest = [each for pair in zip_longest(parity[1:], others) for each in pair if each is not None]
    found = [*first[:2], least, *parity[:1], *first[2:], *rest]
    return list({each.slug: each for each in found}.values())


def _codes(costs: Costs) -> Iterator[CodeSpec]:
    for spec in CODES:
        try:
            Code(spec, costs.query_shape, costs.output_shape)
        except CodeError:
            continue
        yield spec


def _around(costs: Costs, share: float, code: CodeSpec | None) -> Iterator[Proposal]:
    """Yield the widest network of each family that takes at most about `share` of F's time.

    The most capable family comes first; none of a family whose widest is far faster.
    """
    for name in reversed(families(costs.query_shape)):
        widths = WIDTHS if issubclass(NETWORKS.find(name), Scalable) else (1.0,)
        for width in reversed(widths):
            network = name if width == 1 else f"{name}@{width:g}"
            taken = costs.share(network, code)
            if taken is not None and NARROWEST * share < taken <= SLACK * share:
                yield Proposal(network, code, taken)
                break


def propose_named(teacher: Teacher, queried: Queried, sizes: Sizes) -> tuple[list[Proposal], float]:
    """Propose stand-ins for queries of named inputs, and return the model's milliseconds.

    They are backups that are not slower than the model, the most capable first, measured for
    queries of these `sizes`. The fastest backup is always among them. Raises TrainingError where no
    network can take the queries.
    """
    names = [name for kind in NETWORKS for name in kind.proposals(queried)]
    if not names:
        raise TrainingError(
            f"no network of this package learns from {teacher.signature}; train one of your own "
            "and bundle it (parm bundle --backup)"
        )
    deployed = teacher.bundle.manifest.deployed
    models = [OnnxModel(teacher.bundle.content(deployed), signature=deployed.signature)]
    models += [_untrained(name, teacher, queried) for name in names]
    base, *measured = inference_times(models, sizes=sizes)
    backups = [Proposal(name, share=ms / base) for name, ms in zip(names, measured, strict=True)]
    fast = [each for each in backups if each.share <= SLACK]
    return fast[::-1] or [min(backups, key=lambda each: each.share)], base


def _untrained(network: str, teacher: Teacher, queried: Queried) -> OnnxModel:
    signature = teacher.stand_in("FP32")
    with torch.random.fork_rng(devices=[]):
        module = backup_network(network, teacher, lambda: queried).make()
    assert isinstance(module, NamedModule)
    content = export(module.served(), signature.inputs, signature.outputs[0].name)
    return OnnxModel(content, signature=signature)
