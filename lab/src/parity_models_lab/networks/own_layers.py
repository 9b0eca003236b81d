"""The deployed model's own layers, thinner and in small integers, for rows of integers.

The layers - vectors, a convolution, a full layer - are found by what they compute for a few rows,
not by how the graph says it: the vectors of integers may be a lookup or the product of a matrix
with ones and zeros, a normalisation one node or twenty.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, NamedModule, NamedNetwork, times
from parity_models.models.networks.queried import Queried
from parity_models.options import Option
from parity_models_lab.networks.layers import (
    EPSILONS,
    TOLERANCE,
    Floats,
    OtherLayersError,
    Watched,
    alike,
    apart,
    predicts,
    standardised,
    standardising,
)

MOST_VALUES = 4096
"""Different integers in a row at most."""

Standard = Literal["nothing", "positions", "channels"]

WATCHED = 12
"""Rows that the model is watched with, at least."""


@dataclass(frozen=True, eq=False)
class OwnLayers:
    """What a model computes of rows of integers (n, length), layer by layer.

    Each integer is looked up in `table` (values, width); so many neighbours that their vectors have
    `channels` together are a position. Of all positions, or of all channels, the values are
    `standardised` with an `epsilon`, times `gain` and plus `shift` (one for each of these). Then
    come the convolution with `kernel` (maps, channels, window), `padding` positions before and
    behind, the largest value of each map, plus `offset` (maps), and an `activation`; these are
    standardised `again` with that epsilon, if there is one. The last is a full layer with `head`
    (maps, outputs) and `bias` (outputs).
    """

    table: Floats
    standardised: Standard
    epsilon: float
    gain: Floats
    shift: Floats
    kernel: Floats
    padding: tuple[int, int]
    offset: Floats
    activation: str
    again: float | None
    head: Floats
    bias: Floats


def _gelu(values: Floats) -> Floats:
    inner = np.float32(0.7978845608) * (values + np.float32(0.044715) * values**3)
    return np.asarray(values * np.float32(0.5) * (1 + np.tanh(inner)), np.float32)


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "gelu": _gelu,
    "tanh": np.tanh,
}
"""What the largest value of a map goes through. None but gelu ever falls, and that only where it is
next to nothing: so the largest value after it is that of the largest before."""


@lru_cache(4)
def layers_of(queried: Queried) -> OwnLayers | None:
    """Return the layers of a deployed model that takes a row of small integers, if it has such."""
    if len(queried) != 1 or not queried.content:
        return None
    (row,) = queried
    shape = row.tensor.shape
    if row.tensor.dtype.kind not in "iu" or len(shape) != 1 or not isinstance(shape[0], int):
        return None
    if row.low < 0 or row.high >= MOST_VALUES:
        return None
    return find_layers(
        queried.content, row.tensor.name, row.tensor.dtype, shape[0], int(row.high) + 1
    )


def find_layers(
    content: bytes, name: str, dtype: np.dtype[np.generic], length: int, values: int
) -> OwnLayers | None:
    """The layers of a model whose input `name` takes (n, length) integers from 0 to `values` - 1;
    None where it has others."""
    try:
        graph = onnx.load_model_from_string(content).graph
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        if not len(convolutions) == len(graph.input) == len(graph.output) == 1:
            return None
        seen = Watched(content, {name: _rows(dtype, length, values)})
        return _layers(seen, convolutions[0], values)
    except OtherLayersError:
        return None


def _rows(dtype: np.dtype[np.generic], length: int, values: int) -> NDArray[Any]:
    """Rows that hold every value, rows of few of them, and rows of one."""
    rng = np.random.default_rng(0)
    times = -(-values // length)
    every = np.resize(rng.permutation(values), times * length).reshape(times, length)
    few = [
        rng.choice(rng.permutation(values)[: max(2, values >> i % 7)], length)
        for i in range(WATCHED)
    ]
    one = np.repeat(rng.integers(0, values, (WATCHED // 2, 1)), length, axis=1)
    return np.concatenate([every, np.stack(few), one]).astype(dtype)


def _layers(seen: Watched, convolution: onnx.NodeProto, values: int) -> OwnLayers:
    kernel, padding = _kernel(seen, convolution)
    entering = _flat(seen.computed.get(convolution.input[0]))
    positions = entering.shape[2]
    if entering.shape[1] != kernel.shape[1]:
        raise OtherLayersError
    table, vectors = _table(seen, convolution.input[0], values)
    if vectors[0].size != entering[0].size:
        raise OtherLayersError
    vectors = vectors.reshape(len(seen.rows), positions, kernel.shape[1])
    standardised, epsilon, gain, shift = _standard(vectors, entering.transpose(0, 2, 1))
    pooled, offset, activation = _pooled(seen, convolution, kernel)
    again, head, bias = _head(seen, seen.computed[pooled].reshape(len(seen.rows), -1), pooled)
    return OwnLayers(
        table=table,
        standardised=standardised,
        epsilon=epsilon,
        gain=gain,
        shift=shift,
        kernel=kernel,
        padding=padding,
        offset=offset,
        activation=activation,
        again=again,
        head=head,
        bias=bias,
    )


def _kernel(seen: Watched, node: onnx.NodeProto) -> tuple[Floats, tuple[int, int]]:
    """The weights (maps, channels, window) and the positions padded, of a plain convolution."""
    kernel = seen.constants.get(node.input[1])
    if kernel is None or kernel.dtype != np.float32:
        raise OtherLayersError
    told = {each.name: each for each in node.attribute}
    stepped = [*(told[each].ints for each in ("strides", "dilations") if each in told)]
    grouped = "group" in told and told["group"].i != 1
    automatic = "auto_pad" in told and told["auto_pad"].s not in (b"NOTSET", b"VALID")
    if grouped or automatic or any(size != 1 for sizes in stepped for size in sizes):
        raise OtherLayersError
    pads = list(told["pads"].ints) if "pads" in told else [0] * (2 * (kernel.ndim - 2))
    others = pads[1 : kernel.ndim - 2] + pads[kernel.ndim - 1 :]
    if any(others):
        raise OtherLayersError
    return _flat(kernel), (pads[0], pads[kernel.ndim - 2])


def _flat(tensor: Any) -> Floats:
    """(n, channels, positions) of a tensor that may have axes of 1 beside that of positions."""
    if tensor is None or tensor.ndim < 3:
        raise OtherLayersError
    if tensor.ndim > 3 and tensor.shape[3:] != (1,) * (tensor.ndim - 3):
        raise OtherLayersError
    return np.asarray(tensor.reshape(tensor.shape[:3]), np.float32)


def _table(seen: Watched, before: str, values: int) -> tuple[Floats, Floats]:
    """The vectors of integers (values, width), and the last tensor before another that is made of
    nothing else."""
    rows = seen.rows.astype(np.int64)
    for name in seen.before(before):
        tensor = seen.computed.get(name)
        if tensor is None or tensor.size % rows.size:
            continue
        each = tensor.reshape(rows.size, -1)
        table = np.zeros((values, each.shape[1]), np.float32)
        table[rows.ravel()] = each
        if alike(table[rows.ravel()], each):
            return table, tensor
    raise OtherLayersError


def _standard(vectors: Floats, entering: Floats) -> tuple[Standard, float, Floats, Floats]:
    """What makes `vectors` (n, positions, channels) to what enters the convolution."""
    if alike(vectors, entering):
        return "nothing", EPSILONS[0], np.ones(1, np.float32), np.zeros(1, np.float32)
    kinds: tuple[tuple[Standard, int], ...] = (("positions", 1), ("channels", 2))
    for kind, axis in kinds:
        fitted = standardising(vectors, entering, axis)
        if fitted is not None:
            return kind, *fitted
    raise OtherLayersError


def _pooled(seen: Watched, node: onnx.NodeProto, kernel: Floats) -> tuple[str, Floats, str]:
    """The first tensor with one value of each map, what is added to maps, and the activation."""
    largest = _flat(seen.computed.get(node.output[0])).max(axis=2)
    none = np.zeros(len(kernel), np.float32)
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and bias not in seen.constants:
        raise OtherLayersError
    within = seen.constants[bias] if bias else none
    offsets = [none]
    for after in seen.behind(node.output[0]):
        offsets += [
            seen.constants[each].ravel()
            for each in after.input
            if after.op_type == "Add"
            and each in seen.constants
            and seen.constants[each].size == len(kernel)
        ]
        for name in after.output:
            tensor = seen.computed.get(name)
            if tensor is None or tensor.size != largest.size:
                continue
            tensor = tensor.reshape(largest.shape)
            fits = [
                (apart(FUNCTIONS[each](largest + offset), tensor), i, each)
                for i, offset in enumerate(offsets[:2])
                for each in FUNCTIONS
            ]
            least, which, activation = min(fits)
            if least <= TOLERANCE:
                return name, np.asarray(within + offsets[which], np.float32), activation
    raise OtherLayersError


def _head(seen: Watched, pooled: Floats, name: str) -> tuple[float | None, Floats, Floats]:
    """With which epsilon `pooled` (n, maps) is standardised, if it is, and the weights (maps,
    outputs) and bias of a full layer, of which all that the model predicts is made."""
    behind = list(seen.behind(name))
    full = [each for each in behind if each.op_type in ("MatMul", "Gemm")]
    weights = seen.constants.get(full[0].input[1]) if len(full) == 1 else None
    if weights is None or weights.ndim != 2:
        raise OtherLayersError
    turned = any(each.name == "transB" and each.i for each in full[0].attribute)
    weights = np.asarray(weights.T if turned else weights, np.float32)
    taken = seen.computed.get(full[0].input[0])
    if taken is None or taken.shape != pooled.shape:
        raise OtherLayersError
    again, added = None, np.zeros(weights.shape[1], np.float32)
    if not alike(pooled, taken):
        fitted = standardising(pooled, taken, 1)
        if fitted is None:
            raise OtherLayersError
        again, gain, shift = fitted
        added, weights = shift @ weights, gain[:, None] * weights
        pooled = standardised(pooled, 1, again)
    for bias in _biases(seen, full[0], behind, weights.shape[1]):
        said = pooled @ weights + added + bias
        if predicts(said, seen.computed.get(seen.outputs[0])):
            return again, weights, np.asarray(added + bias, np.float32)
    raise OtherLayersError


def _biases(
    seen: Watched, full: onnx.NodeProto, behind: list[onnx.NodeProto], outputs: int
) -> Iterator[Floats]:
    """What may be added to the outputs of a full layer."""
    added = (each for node in behind if node.op_type == "Add" for each in node.input)
    names = [*full.input[2:], *added]
    yield from (
        seen.constants[each].ravel()
        for each in names
        if each in seen.constants and seen.constants[each].size == outputs
    )
    yield np.zeros(outputs, np.float32)


# The network

LARGEST = 127
"""The largest integer that values are rounded to, either sign."""

LARGEST_WEIGHT = 63
"""The largest integer that weights are rounded to: they have 7 bits. Processors without VNNI add
up two products of an unsigned and a signed byte in 16 bits, and saturate; with 2 * 255 * 63 below
2**15, every processor computes what was trained and calibrated."""

ROWS = 32
"""Rows whose maps are computed at once: they are large."""

ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "gelu": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
}


class OwnLayersNetwork(NamedNetwork):
    """The deployed model's own layers, with a share of its maps, in small integers.

    It takes one input of integers (n, length), and is there for a model that looks them up as
    vectors, and has one convolution, the largest value of each of its maps, and one full layer.
    Vectors and normalisation are the model's, convolution and full layer start as the model's and
    are learned. With all maps it agrees before it has learned anything.
    """

    name = "own-layers"
    deployed = Effort(3, 64, 1e-3, 1e-2, mirror=False, threaded=True)
    parity = Effort(3, 64, 1e-3, 1e-2, mirror=False, threaded=True)
    proposed = ("own-layers@0.25", "own-layers@0.5", "own-layers")

    @dataclass(frozen=True, kw_only=True)
    class Options(NamedNetwork.Options):
        """What can be set."""

        width: Annotated[
            float,
            Option("The share of the convolution's maps that is kept.", above=0, at_most=1),
        ] = 1.0

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return len(queried) == 1 and layers_of(queried) is not None

    @classmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        layers = layers_of(queried)
        if layers is None or outputs != (layers.head.shape[1],):
            raise TrainingError(
                "own-layers takes one input of integers, of a model whose layers it found: vectors "
                "of these, one convolution, the largest value of each map, and one full layer; "
                "choose another network"
            )
        return Thinned(layers, options.width)


class Thinned(NamedModule):
    """Rows of integers (n, length) to (n, outputs), by those of the `layers` that tell most."""

    learned = True
    table: Tensor
    gain: Tensor
    shift: Tensor
    reach: Tensor

    def __init__(self, layers: OwnLayers, width: float) -> None:
        super().__init__()
        self.layers = layers
        kept = _telling(layers, times(width, len(layers.kernel)))
        # Not among the weights that are kept: they are the deployed model's.
        self.register_buffer("table", torch.tensor(layers.table), persistent=False)
        self.register_buffer("gain", torch.tensor(layers.gain), persistent=False)
        self.register_buffer("shift", torch.tensor(layers.shift), persistent=False)
        # How far from 0 values go that enter the convolution; of the first batch, then for good.
        self.register_buffer("reach", torch.zeros(()))
        self.kernel = nn.Parameter(torch.tensor(layers.kernel)[kept].clone())
        self.offset = nn.Parameter(torch.tensor(layers.offset)[kept].clone())
        self.head = nn.Linear(len(kept), layers.head.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(layers.head).T[:, kept])
            self.head.bias.copy_(torch.tensor(layers.bias))

    def forward(self, *inputs: Tensor) -> Tensor:
        kernel = self.kernel + (self.rounded_kernel() - self.kernel).detach()
        largest = torch.cat([self._largest(rows, kernel) for rows in inputs[0].split(ROWS)])
        return self.leave(largest + self.offset)

    def _largest(self, rows: Tensor, kernel: Tensor) -> Tensor:
        """The largest value of each map: (n, maps)."""
        with torch.no_grad():
            entering = self.enter(rows.long())
            if not self.reach:
                self.reach.copy_(entering.abs().amax((1, 2)).mean())
            step = self.reach / LARGEST
            entering = (entering / step).round().clamp(-LARGEST - 1, LARGEST) * step
        # All of it in 32 bits, where the rest is trained in 16.
        with torch.autocast(rows.device.type, enabled=False):
            # torch declares no types for `apply`.
            found: Tensor = _Largest.apply(entering.float(), kernel.float())  # type: ignore[no-untyped-call]
        return found

    def enter(self, rows: Tensor) -> Tensor:
        """What enters the convolution: (n, positions, channels)."""
        layers, channels = self.layers, self.kernel.shape[1]
        vectors = functional.embedding(rows.clamp(0, len(self.table) - 1), self.table)
        values = vectors.reshape(rows.shape[0], -1, channels)
        if layers.standardised == "positions":
            turned = values.transpose(1, 2)
            size = (turned.shape[2],)
            turned = functional.layer_norm(turned, size, self.gain, self.shift, layers.epsilon)
            values = turned.transpose(1, 2)
        elif layers.standardised == "channels":
            size = (channels,)
            values = functional.layer_norm(values, size, self.gain, self.shift, layers.epsilon)
        return functional.pad(values, (0, 0, *layers.padding)) if any(layers.padding) else values

    def leave(self, largest: Tensor) -> Tensor:
        """Outputs of the largest values of maps, to which what is added to maps was added."""
        found: Tensor = ACTIVATIONS[self.layers.activation](largest)
        if self.layers.again is not None:
            found = functional.layer_norm(found, found.shape[1:], eps=self.layers.again)
        outputs: Tensor = self.head(found)
        return outputs

    def rounded_kernel(self) -> Tensor:
        """The kernel as it is served: whole multiples of a step for each map."""
        step = self.steps()
        return (self.kernel / step).round() * step

    def steps(self) -> Tensor:
        """Those of the kernel: (maps, 1, 1)."""
        return (
            self.kernel.detach().abs().amax((1, 2), keepdim=True).clamp_min(1e-9) / LARGEST_WEIGHT
        )

    def served(self) -> nn.Module:
        return _Served(self)


class _Largest(torch.autograd.Function):
    """The largest value of each map of a convolution over `entering` (n, positions, channels).

    What is entering learns nothing; a map's weights learn from the window that its value is of,
    which is a small part of what a convolution's gradient takes to compute.
    """

    @staticmethod
    def forward(ctx: Any, entering: Tensor, kernel: Tensor) -> Tensor:
        maps = functional.conv1d(entering.transpose(1, 2), kernel)
        found, places = maps.max(dim=2)
        ctx.save_for_backward(entering, places)
        ctx.window = kernel.shape[2]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        entering, places = ctx.saved_tensors
        rows = torch.arange(len(entering), device=entering.device)[:, None]
        weighs = gradients[0].T.unsqueeze(1)  # (maps, 1, n)
        of_window = [
            torch.bmm(weighs, entering[rows, places + i].transpose(0, 1)).squeeze(1)
            for i in range(ctx.window)
        ]
        return None, torch.stack(of_window, dim=2)


class _Served(nn.Module):
    """The same in integers, where a matrix of windows takes the place of the convolution."""

    weights: Tensor
    scale: Tensor
    step: Tensor
    zero: Tensor

    @torch.no_grad()
    def __init__(self, thinned: Thinned) -> None:
        super().__init__()
        self.thinned = thinned
        steps = thinned.steps()
        whole = (thinned.kernel / steps).round().to(torch.int8)
        self.window = whole.shape[2]
        self.register_buffer("weights", whole.permute(2, 1, 0).flatten(0, 1).contiguous())
        reach = thinned.reach if thinned.reach else torch.ones(())
        self.register_buffer("step", (reach / LARGEST).float().clone())
        self.register_buffer("scale", steps.flatten() * self.step)
        self.register_buffer("zero", torch.tensor(LARGEST + 1, dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> Tensor:
        entering = self.thinned.enter(inputs[0].long())
        whole = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (entering, self.step, self.zero),
            dtype=torch.uint8,
            shape=entering.shape,
            version=13,
        )
        assert isinstance(whole, Tensor)
        places = entering.shape[1] - self.window + 1
        windows = torch.cat([whole[:, i : i + places] for i in range(self.window)], dim=2)
        maps = torch.onnx.ops.symbolic(
            "MatMulInteger",
            (windows, self.weights, self.zero),
            dtype=torch.int32,
            shape=(entering.shape[0], places, self.weights.shape[1]),
            version=10,
        )
        assert isinstance(maps, Tensor)
        return self.thinned.leave(maps.amax(1).float() * self.scale + self.thinned.offset)


def _telling(layers: OwnLayers, maps: int) -> Tensor:
    """The places of so many maps that the full layer weighs most, in their order."""
    weights = torch.tensor(layers.head)
    weighs = (weights - weights.mean(dim=1, keepdim=True)).norm(dim=1)
    kept: Tensor = weighs.argsort(descending=True, stable=True)[:maps].sort().values
    return kept
