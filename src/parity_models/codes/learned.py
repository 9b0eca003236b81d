"""Learned encoders and decoders: their arithmetic is a network's, which is given to them.

A network is any callable from arrays to arrays: a torch module while it is trained, a model in
ONNX Runtime when it serves. Without one a code still knows its shapes and what it can decode.
(Kosaian, Rashmi, Venkataraman: Learning-Based Coded Computation, IEEE JSAIT 2020.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from array_api_compat import array_namespace, device

from parity_models.codes.decoders import SubtractionDecoder
from parity_models.codes.encoders import Encoder
from parity_models.errors import CodeError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""
Shape = tuple[int, ...]
Coder = Literal["encoder", "decoder"]
Network = Callable[[Array], Array]
"""A batch of rows in, a batch of rows out."""


@dataclass(frozen=True)
class Networks:
    """The networks of a code's learned encoder and decoder, where it has them."""

    encoder: Network | None = None
    decoder: Network | None = None


NO_NETWORKS = Networks()


class LearnedEncoder(Encoder):
    """A network makes the parity queries, which look to parity models like queries.

    It takes (n, k, *query_shape) and gives (n, r, *query_shape).
    """

    def __init__(
        self, k: int, r: int, query_shape: Shape, *, network: Network | None = None
    ) -> None:
        super().__init__(k, r, query_shape)
        self._network = network

    @property
    def network_shapes(self) -> tuple[Shape, Shape]:
        """What the network takes and gives, without the batch axis."""
        return (self.k, *self.query_shape), (self.r, *self.parity_shape)

    def _parity_shape(self) -> Shape:
        return self.query_shape

    def _fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        if self._network is None:
            raise _untrained(f"{self.name} encoder")
        batch = queries[0].shape[: queries[0].ndim - len(self.query_shape)]
        stacked = xp.stack([xp.reshape(one, (-1, *self.query_shape)) for one in queries], axis=1)
        parities = self._network(stacked)
        for j in range(self.r):
            out[j, ...] = xp.reshape(parities[:, j, ...], (*batch, *self.parity_shape))


class MLPEncoder(LearnedEncoder):
    """A multi-layer perceptron over the k queries, flattened: for queries of any shape."""

    name = "mlp"


class ConvolutionalEncoder(LearnedEncoder):
    """Dilated convolutions over the k images, stacked as channels: for images."""

    name = "convolution"

    def _parity_shape(self) -> Shape:
        if len(self.query_shape) != 3:
            raise CodeError(
                "the convolution encoder needs images of shape (channels, height, width), got "
                f"queries of shape {self.query_shape}; use the mlp, stack or sum encoder"
            )
        return self.query_shape


class MLPDecoder(SubtractionDecoder):
    """A network corrects what subtraction reconstructs: it sees all there is of the group.

    Parity models are trained as for subtraction, whose masks hold as well. The network takes
    (n, k + r, values + 1): for each slot the prediction, or what subtraction makes of a missing
    one, then for each parity query its output, or zeros; at the end of each row, 1 for what is
    here. It gives (n, k, values), to be added to what subtraction gives. `values` are those of
    one prediction.
    """

    name = "mlp"

    def __init__(
        self, k: int, r: int, output_shape: Shape, *, network: Network | None = None
    ) -> None:
        super().__init__(k, r, output_shape)
        self._network = network

    @property
    def network_shapes(self) -> tuple[Shape, Shape]:
        """What the network takes and gives, without the batch axis."""
        values = prod(self.output_shape)
        return (self.k + self.r, values + 1), (self.k, values)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        solved = super().decode(predictions, parity_outputs)
        if not solved:
            return {}
        if self._network is None:
            raise _untrained(f"{self.name} decoder")
        like = next(iter(solved.values()))
        xp = array_namespace(like)
        rows = [solved.get(slot, value) for slot, value in enumerate(predictions)]
        rows += [xp.zeros_like(like) if output is None else output for output in parity_outputs]
        here = [value is not None for value in (*predictions, *parity_outputs)]
        values = prod(self.output_shape)
        table = xp.stack([xp.reshape(row, (-1, values)) for row in rows], axis=1)
        flags = xp.asarray(here, dtype=like.dtype, device=device(like))
        flags = xp.broadcast_to(flags[None, :, None], (*table.shape[:2], 1))
        corrections = self._network(xp.concat([table, flags], axis=-1))
        return {
            slot: value + xp.reshape(corrections[:, slot, :], value.shape)
            for slot, value in solved.items()
        }


def _untrained(coder: str) -> CodeError:
    return CodeError(
        f"the {coder} is learned, and no network was given to it; use the code of a bundle that "
        "was trained with it (parm parity)"
    )
