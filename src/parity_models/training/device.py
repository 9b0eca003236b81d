"""Where training runs, and how many threads compute there."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.training.rows import DeviceQueries, run

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str | None) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1", "mps"), or the fastest there is.

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
    """Move `network` to `device`, laid out so that its convolutions are fast there, and right."""
    # Up to twice as fast on a CPU, and what tensor cores like.
    if device.type != "cpu" or not any(map(_writes_astray, network.modules())):
        # torch documents the argument by itself, and declares it beside others alone.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)


NARROW = 16
"""A strided 1x1 convolution of fewer channels than these, channels last, corrupts memory on CPUs:
oneDNN 3.12 computes its gradients over an odd number of rows, on several threads, where it may not
write. Trainings end in a crash, or differ from run to run."""


def _writes_astray(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels // module.groups < NARROW
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
    )


def run_reduced(module: nn.Module, inputs: DeviceQueries) -> Tensor:
    """Outputs of `module` in training, as float32, computed in bfloat16 where that is faster.

    Weights stay float32. In a network of convolutions it halves the time of a step.
    """
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=_computes_bfloat16(device)):
        outputs = run(module, inputs)
    return outputs.float()


@cache
def _computes_bfloat16(device: str) -> bool:
    """Does the hardware compute in it? Where software imitates it, it is slower than float32.

    Not on CPUs with AMX: its kernels in oneDNN 3.12 read memory that nobody wrote (oneDNN, issue
    5717), so that trainings differ from run to run, and some end in NaN.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in the oldest torch
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") and not capabilities.get("amx_bf16"))
    return False


@contextmanager
def computing(threaded: bool) -> Iterator[None]:
    """Let torch compute on one thread only, unless `threaded`."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threaded else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
