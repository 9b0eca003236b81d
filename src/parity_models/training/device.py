"""The device that trains: networks and queries on it, and models run over them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.tensors.queries import sizes_in
from parity_models.tensors.signature import Array, Named, Signature

Network = TypeVar("Network", bound=nn.Module)

BATCH = 128
"""Rows per call when a model only predicts: more of them would not fit a CPU's caches."""

NARROW = 16
"""A strided 1x1 convolution of fewer channels than these, channels last, corrupts memory on CPUs:
with several threads and an odd number of rows, oneDNN 3.12 writes its gradients out of bounds.
Trainings end in a crash, or differ from run to run."""


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name` ("cpu", "cuda", "cuda:1", "mps"), or the fastest there is.

    Raises TrainingError for a device that this machine does not have.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"device {name!r} cannot be used here ({reason}); leave it out to have one chosen"
        ) from error
    return device


def place(network: Network, device: torch.device) -> Network:
    """Move `network` to `device`, in the memory layout in which its convolutions are fast there."""
    # Up to twice as fast on a CPU, and preferred by tensor cores.
    if device.type != "cpu" or not any(map(_is_miscomputed, network.modules())):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    return network.to(device)


def _is_miscomputed(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels // module.groups < NARROW
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
    )


@contextmanager
def computing(threaded: bool) -> Iterator[None]:
    """Let torch compute on one thread only, unless `threaded`."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threaded else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of n queries: `tensors` (n, ...) in the order of a signature's inputs.

    `sizes` (n,) are the real sizes of each query along each dynamic axis, and `axes` the places of
    these axes in each input's shape. A selection of rows is cut to its largest sizes, so that
    nothing is computed for padding.
    """

    tensors: tuple[Tensor, ...]
    sizes: Mapping[str, Tensor] = field(default_factory=dict)
    axes: tuple[Mapping[str, int], ...] = ()

    @classmethod
    def of(cls, rows: Array, signature: Signature, device: torch.device) -> "Rows":
        """Return rows of one kind of the signature's (see signature.Layout) on the device."""
        arrays = signature.kind_of(rows[0, ...]).input.split(rows)
        tensors = (torch.from_numpy(_indexable(arrays[each.name])) for each in signature.inputs)
        on_device = tuple(each.to(device) for each in tensors)
        sizes = sizes_in(arrays, signature.inputs).items()
        axes = tuple(each.axes for each in signature.inputs)
        return cls(on_device, {axis: torch.from_numpy(each) for axis, each in sizes}, axes)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, which: Tensor | slice) -> "Rows":
        rows = which.cpu() if self.sizes and isinstance(which, Tensor) else which
        tensors, sizes = list(self.tensors), {axis: each[rows] for axis, each in self.sizes.items()}
        for number, axes in enumerate(self.axes):
            for axis, at in axes.items():
                if len(sizes[axis]):
                    longest = int(sizes[axis].max())
                    tensors[number] = tensors[number].narrow(1 + at, 0, longest)
        return Rows(tuple(each[which] for each in tensors), sizes, self.axes)

    @property
    def is_array(self) -> bool:
        """True if each query is one array of floats, of fixed shape."""
        return len(self.tensors) == 1 and not self.sizes and self.tensors[0].is_floating_point()

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.tensors[0].device

    def arrays(self, signature: Signature) -> Named:
        """Return the rows as arrays by name, of the signature's data types."""
        return {
            each.name: tensor.detach().cpu().numpy().astype(each.dtype, copy=False)
            for each, tensor in zip(signature.inputs, self.tensors, strict=True)
        }


def run_reduced(module: nn.Module, queries: Rows) -> Tensor:
    """Run `module` in training, in bfloat16 where that is faster; outputs are float32.

    Weights stay float32. In a network of convolutions it halves the time of a step.
    """
    device = queries.device.type
    with torch.autocast(device, torch.bfloat16, enabled=_computes_bfloat16(device)):
        outputs: Tensor = module(*queries.tensors)
    return outputs.float()


@cache
def _computes_bfloat16(device: str) -> bool:
    """Return whether the hardware computes in bfloat16; emulated, it is slower than float32.

    Not on CPUs with AMX: oneDNN 3.12 reads uninitialised memory there (oneDNN, issue 5717), so that
    trainings differ from run to run, and some end in NaN.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in the oldest torch
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") and not capabilities.get("amx_bf16"))
    return False


def mirror(queries: Tensor, which: Tensor) -> Tensor:
    """Mirror, left to right, the `queries` (n, ..., width) at which `which` (n,) is true."""
    which = which.view(-1, *[1] * (queries.ndim - 1))
    return torch.where(which, queries.flip(-1), queries)


@torch.no_grad()
def predict(module: nn.Module, queries: Rows, mirrored: bool = False) -> Tensor:
    """Return outputs (n, *output_shape) of `module`, in evaluation mode, for n queries."""
    module.eval()
    outputs = []
    for start in range(0, len(queries), BATCH):
        tensors = queries[start : start + BATCH].tensors
        outputs.append(module(*(each.flip(-1) if mirrored else each for each in tensors)))
    return torch.cat(outputs)


def _indexable(array: Array) -> Array:
    """Return `array` in a data type that torch can index."""
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1
    return np.ascontiguousarray(array, np.int64 if unsigned else None)
