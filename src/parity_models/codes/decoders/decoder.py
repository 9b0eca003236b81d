"""The base of decoders.

A decoder also fixes the shape of a parity model's output (`parity_output_shape`, without batch
axes) and the targets of its training (`targets`), since only together do the two make sense.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from parity_models.codes.coder import Array, Coder, Network, Shape
from parity_models.errors import UndecodableError


class Decoder(Coder):
    """Fills in unavailable predictions of a group of k from what is available.

    A subclass says its `name`, its `Options`, and of itself: `apart`, that a reconstruction depends
    on its own slot of parity outputs alone; `reads_off`, that parity outputs are k predictions,
    (k, *output_shape), as the deployed model gives them, which are read off as they are; `sums`,
    that parity outputs are sums of predictions, which take longer to learn; `tells_slots`, that
    parity outputs must tell the slots of a group apart, which none can after a symmetric encoder.
    """

    apart: ClassVar[bool] = False
    reads_off: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    tells_slots: ClassVar[bool] = False

    def __init__(
        self,
        k: int,
        r: int,
        output_shape: Shape,
        options: Any = None,
        network: Network | None = None,
    ) -> None:
        super().__init__(k, r, options, network)
        self.output_shape = output_shape
        self.parity_output_shape = self.shape()

    @abstractmethod
    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        """Return the training targets of parity model j, given the k predictions F(X_i).

        k arrays of shape (*batch, *output_shape) give (*batch, *parity_output_shape).
        """

    @abstractmethod
    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return for each of k slots whether its prediction is missing and can be reconstructed.

        `available` (k) says which predictions are here, `parities` (r) which parity outputs.
        """

    @abstractmethod
    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        """Reconstruct every slot that is None in `predictions`, keyed by slot.

        `predictions` are k arrays (*batch, *output_shape), `parity_outputs` r arrays
        (*batch, *parity_output_shape); None stands for what is unavailable. Raises
        UndecodableError if what is there does not determine every missing slot.
        """

    def refusal(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> UndecodableError:
        """Return the error for outputs that do not determine the missing predictions."""
        missing = [i for i, value in enumerate(predictions) if value is None]
        here = sum(value is not None for value in parity_outputs)
        return UndecodableError(
            f"the {self.name} decoder cannot reconstruct slots {missing} of k={self.k} from "
            f"{here} of r={self.r} parity outputs; wait for more outputs of the group"
        )
