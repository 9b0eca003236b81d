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
from parity_models.models.networks.queried import Queried, Shape
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.training.candidates import Proposal, code_for
from parity_models.training.networks import parity_network, single_network
from parity_models.training.teacher import Teacher

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


def propose(teacher: Teacher, queried: Queried, sizes: Sizes) -> list[Proposal]:
    """Propose stand-ins for a deployed model, the most promising first.

    For queries of named inputs they are backups, measured for queries of these `sizes`. The fastest
    network there is is always among them. Raises TrainingError where no network can take the
    queries.
    """
    if teacher.plain:
        return propose_by(Costs(OnnxModel(teacher.bundle.deployed_path)))
    measured = _measure_named(teacher, queried, sizes)
    fast = [each for each in measured if each.share <= SLACK]
    return fast[::-1] or [min(measured, key=lambda each: each.share)]


def propose_network(teacher: Teacher, spec: CodeSpec, queried: Queried, sizes: Sizes) -> str:
    """Choose the network of parity models where none is named.

    It is the deployed model's if the bundle holds its weights, which training then starts from.
    Else it is the most capable that takes no longer than the deployed model for one query, by times
    measured here, or the fastest if all take longer: a slower one would make its instances a
    bottleneck.
    """
    code_for(spec, teacher)
    own = teacher.bundle.manifest.deployed.network
    if teacher.plain and not teacher.foreign and family(own) in NETWORKS.names:
        return own
    shares: dict[str, float | None]
    if teacher.plain:
        costs = Costs(OnnxModel(teacher.bundle.deployed_path))
        shares = {name: costs.share(name, spec) for name in _names(costs.queried)}
    else:
        measured = _measure_named(teacher, queried, sizes)
        shares = {each.network: spec.k * each.share for each in measured}
    fitting = {name: share for name, share in shares.items() if share is not None}
    fast = [name for name, share in fitting.items() if share <= SLACK]
    return fast[-1] if fast else min(fitting, key=fitting.__getitem__)


def _names(queried: Queried) -> list[str]:
    """Return the networks for such queries, each slower than those before it, and better.

    All learn in minutes from some ten thousand queries.
    """
    return [name for kind in NETWORKS for name in kind.proposals(queried)]


def _measure_named(teacher: Teacher, queried: Queried, sizes: Sizes) -> list[Proposal]:
    """Return all backups for queries of named inputs, in the order of `_names`."""
    names = _names(queried)
    if not names:
        raise TrainingError(
            f"no network of this package learns from {teacher.signature}; train one of your own "
            "and bundle it (parm bundle --backup)"
        )
    deployed, signature = teacher.bundle.manifest.deployed, teacher.stand_in("FP32")
    models = [OnnxModel(teacher.bundle.content(deployed), signature=deployed.signature)]
    for name in names:
        with torch.random.fork_rng(devices=[]):
            module = single_network(name, queried, teacher.output.shape).make()
        if isinstance(module, NamedModule):
            module = module.served()
        content = export(module, signature.inputs, signature.outputs[0].name)
        models.append(OnnxModel(content, signature=signature))
    base, *measured = inference_times(models, sizes=sizes)
    return [Proposal(name, share=ms / base) for name, ms in zip(names, measured, strict=True)]


class Costs:
    """Times of networks for a deployed model's queries, as shares of that model's time.

    Of each family, the cheapest first, the narrowest network and the usual one are measured in ONNX
    Runtime. Others lie between or beyond, by how much they compute. Networks that cannot take the
    queries have no cost.
    """

    def __init__(self, deployed: OnnxModel, times: Times = inference_times) -> None:
        self._shapes: tuple[Shape, Shape] = (
            deployed.signature.input.shape,
            deployed.signature.output.shape,
        )
        self.queried = Queried.of(self._shapes[0])
        self.families = list(dict.fromkeys(map(family, _names(self.queried))))
        names = [name for each in self.families for name in _measured(each)]
        self._work = {name: work for name in names if (work := self._computes(name, None))}
        with torch.random.fork_rng(devices=[]):
            models = [
                OnnxModel(export(build_network(name, *self._shapes), [floats(self._shapes[0])]))
                for name in self._work
            ]
        self.deployed_ms, *measured = times([deployed, *models])
        self._ms = dict(zip(self._work, measured, strict=True))

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

    def _computes(self, network: str, spec: CodeSpec | None) -> int | None:
        """Return the operations of one run; None for a network that cannot take the queries."""
        shape, module = self._shapes[0], nn.Module()
        try:
            with torch.device("meta"):
                if spec is None:
                    module = build_network(network, *self._shapes)
                else:
                    code = Code(spec, *self._shapes)
                    shape, module = code.parity_shape, parity_network(network, code).make()
        except TrainingError:
            return None
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.eval()(torch.zeros(1, *shape, device="meta"))
        return int(counter.get_total_flops())

    def around(self, share: float, code: CodeSpec | None) -> Iterator[Proposal]:
        """Yield the widest network of each family that takes at most about `share` of F's time.

        The most capable family comes first; none of a family whose widest is far faster.
        """
        for name in reversed(self.families):
            widths = WIDTHS if issubclass(NETWORKS.find(name), Scalable) else (1.0,)
            for width in reversed(widths):
                network = name if width == 1 else f"{name}@{width:g}"
                taken = self.share(network, code)
                if taken is not None and NARROWEST * share < taken <= SLACK * share:
                    yield Proposal(network, code, taken)
                    break

    def codes(self) -> Iterator[CodeSpec]:
        """Yield the CODES that the queries can have."""
        for spec in CODES:
            try:
                Code(spec, *self._shapes)
            except CodeError:
                continue
            yield spec


def _measured(name: str) -> tuple[str, ...]:
    """Return the networks of a family that are measured: the narrowest, if any, and the usual."""
    if issubclass(NETWORKS.find(name), Scalable):
        return f"{name}@{WIDTHS[0]:g}", name
    return (name,)


def propose_by(costs: Costs) -> list[Proposal]:
    """Propose stand-ins for the model that `costs` are relative to, the most promising first.

    Each is the widest network of its family that does not take longer than it may. The fastest
    network there is is always among them, even where it is slower than F.
    """
    backups = [list(costs.around(1 / divisor, None)) for divisor in DIVISORS]
    parity = [each for code in costs.codes() for each in list(costs.around(1.0, code))[:1]]
    first = [each[0] for each in backups if each]
    others = [each[1] for each in backups if len(each) > 1]
    fastest = costs.families[0]
    least = Proposal(fastest, None, costs.share(fastest, None) or 1.0)
    rest = [each for pair in zip_longest(parity[1:], others) for each in pair if each is not None]
    found = [*first[:2], least, *parity[:1], *first[2:], *rest]
    return list({each.slug: each for each in found}.values())
