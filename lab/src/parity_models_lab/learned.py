"""Learned encoders and decoders, as users' own extensions, trained together with the parity model.

(Kosaian, Rashmi, Venkataraman: Learning a Code, arXiv:1806.01259, 2018: an MLP and a convolutional
encoder, an MLP decoder.) A code's options name a file of weights. Without it, weights are random.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parity_models.codes import Code, CodeSpec, Encoder
from parity_models.codes.coder import Array, Coder, Shape
from parity_models.codes.decoders import SubtractionDecoder
from parity_models.options import option
from parity_models.training.network_plans import Factory, NetworkPlan, parity_network

CHANNELS = 8
"""Channels of the convolutional encoder's layers, for each of k queries."""

DILATIONS = (1, 1, 2, 4, 8, 1)
"""Dilations of its layers, so that each value of a parity query depends on most of an image."""


def _read(network: nn.Module, weights: str) -> nn.Module:
    """Return the network, with the weights in this file if there is one."""
    if weights and Path(weights).exists():
        network.load_state_dict(load_file(weights))
    return network


def _run(network: nn.Module, inputs: Tensor, like: Array) -> Array:
    """Return the network's outputs, of the kind of `like`: NumPy's in service."""
    if isinstance(like, Tensor):
        return network(inputs)
    with torch.no_grad():
        return network(inputs).numpy()


def _perceptron(*units: int) -> nn.Sequential:
    """Return fully connected layers with ReLU between them."""
    layers = [each for sizes in pairwise(units) for each in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, kw_only=True)
class Learned(Coder.Options):
    """The options of a learned encoder or decoder."""

    weights: str = option("", "File of weights, in the safetensors format.")


class LearnedEncoder(Encoder):
    """k queries in, r parity queries of the same shape out, by a network."""

    floating = True
    Options = Learned

    def __init__(self, k: int, r: int, query_shape: Shape, options: Any = None) -> None:
        super().__init__(k, r, query_shape, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = _read(self.build(), self.options.weights)

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a network from (n, k, *query_shape) to n times r queries' values."""

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        rank = len(self.query_shape)
        inputs = torch.stack([torch.as_tensor(query) for query in queries], -rank - 1)
        batch = inputs.shape[: -rank - 1]
        inputs = inputs.reshape(-1, self.k, *self.query_shape)
        parities = _run(self.module, inputs, like=out)
        parities = parities.reshape(*batch, self.r, *self.query_shape)
        out[...] = xp.moveaxis(parities, len(batch), 0)


class MLPEncoder(LearnedEncoder):
    """Two fully connected layers over all values of the k queries."""

    name = "mlp"

    def build(self) -> nn.Module:
        values = prod(self.query_shape)
        layers = _perceptron(self.k * values, self.k * values, self.r * values)
        return nn.Sequential(nn.Flatten(), *layers)


class ConvolutionalEncoder(LearnedEncoder):
    """Dilated convolutions over the k images' channels."""

    name = "convolutional"

    def build(self) -> nn.Module:
        channels, inner = self.query_shape[0], CHANNELS * self.k
        sizes = pairwise([self.k * channels, *[inner] * len(DILATIONS)])
        layers: list[nn.Module] = [nn.Flatten(1, 2)]
        for each, d in zip(sizes, DILATIONS, strict=True):
            layers += [nn.Conv2d(*each, 3, padding=d, dilation=d), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(inner, self.r * channels, 1))


class MLPDecoder(SubtractionDecoder):
    """Three fully connected layers over k predictions and r parity outputs, zeros in place of what
    is not available, to k predictions. Parity outputs are held near sums of predictions."""

    name = "mlp"
    Options = Learned

    def __init__(self, k: int, r: int, output_shape: Shape, options: Any = None) -> None:
        super().__init__(k, r, output_shape, options)
        values = prod(output_shape)
        inner = 8 * (k + r) * values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = _perceptron((k + r) * values, inner, inner, k * values)
            self.module = _read(network, self.options.weights)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = [slot for slot, prediction in enumerate(predictions) if prediction is None]
        if len(missing) > sum(output is not None for output in parity_outputs):
            raise self.refusal(predictions, parity_outputs)
        here = [*predictions, *parity_outputs]
        example = next(each for each in here if each is not None)
        batch = example.shape[: example.ndim - len(self.output_shape)]
        zeros = torch.zeros(batch + self.output_shape)
        values = [zeros if each is None else torch.as_tensor(each) for each in here]
        inputs = torch.stack(values, len(batch)).flatten(len(batch))
        outputs = _run(self.module, inputs, like=example)
        outputs = outputs.reshape(*batch, self.k, *self.output_shape)
        after = (slice(None),) * len(self.output_shape)
        return {slot: outputs[(..., slot, *after)] for slot in missing}


class JointTraining:
    """Plans parity models that are trained together with their code's learned coders, whose weights
    it writes to files that begin with `stem`."""

    def __init__(self, spec: CodeSpec, stem: Path) -> None:
        self._files = {each: f"{stem}.{each}" for each in ("encoder", "decoder")}
        self._coders: dict[str, nn.Module] = {}
        encoder, decoder = (
            {"weights": file} if getattr(spec, each) in spec.own else {}
            for each, file in self._files.items()
        )
        self.spec = msgspec.structs.replace(spec, encoder_options=encoder, decoder_options=decoder)

    def __call__(self, network: str | Factory, code: Code) -> NetworkPlan:
        usual = parity_network(network, code)
        coders = {"encoder": code.encoder, "decoder": code.decoder}
        self._coders = {
            name: each.module
            for name, each in coders.items()
            if isinstance(each, LearnedEncoder | MLPDecoder)
        }

        def make() -> nn.Module:
            made = usual.make()
            # For the optimiser and checkpoints; the last module calls no other.
            [*made.modules()][-1].coders = nn.ModuleDict(self._coders)
            return made

        return replace(usual, make=make)

    def save(self) -> None:
        """Write the coders' weights, at the best epoch, once the parity models are trained."""
        for name, each in self._coders.items():
            weights = {key: value.contiguous() for key, value in each.state_dict().items()}
            save_file(weights, self._files[name])
