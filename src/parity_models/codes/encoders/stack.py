"""The stack encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from parity_models.codes.coder import Array, Shape
from parity_models.codes.encoders.encoder import Encoder
from parity_models.errors import CodeError
from parity_models.options import Option


class StackEncoder(Encoder):
    """k queries joined along one of their axes (a feature or channel axis), or a new one; nothing
    is lost.

    Only the first layer of the parity model grows. Works for queries of any shape and dtype;
    `axis` counts in the query's own axes, or with `new_axis` in the parity query's.
    """

    name = "stack"
    apart = True
    stacked_axis: int

    @dataclass(frozen=True, kw_only=True)
    class Options(Encoder.Options):
        """What can be set."""

        axis: Annotated[
            int, Option("The axis along which queries are joined, of a query's own; -1: the last.")
        ] = 0
        new_axis: Annotated[
            bool, Option("Join along a new axis at that place, for queries such as token ids.")
        ] = False

    def shape(self) -> Shape:
        rank = len(self.query_shape) + self.options.new_axis
        axis: int = self.options.axis
        if not -rank <= axis < rank:
            raise CodeError(
                f"queries of shape {self.query_shape} have no axis {axis} to stack along"
            )
        self.stacked_axis = axis = axis % rank
        if self.options.new_axis:
            return (*self.query_shape[:axis], self.k, *self.query_shape[axis:])
        shape = list(self.query_shape)
        shape[axis] *= self.k
        return tuple(shape)

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        after = (slice(None),) * (len(self.parity_shape) - self.stacked_axis - 1)
        size = self.parity_shape[self.stacked_axis] // self.k
        for slot, query in enumerate(queries):
            joined = slot if self.options.new_axis else slice(slot * size, (slot + 1) * size)
            out[(..., joined, *after)] = query
        for j in range(1, self.r):
            out[j, ...] = out[0, ...]
