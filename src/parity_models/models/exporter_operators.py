"""PyTorch's table of how its operators are written in ONNX, made once for all exports.

PyTorch makes it anew for each export, out of the sources of some 500 functions: for a small network
that takes longer than all else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

_tables: dict[tuple[Any, ...], Any] = {}
"""By the arguments that it was made with, such as the version of ONNX."""


@contextmanager
def operators_known() -> Iterator[None]:
    """Exports in this context share the table. A PyTorch that has another way makes its own."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def from_torchlib(cls: type, *arguments: Any, **named: Any) -> Any:
        key = (*arguments, *sorted(named.items()))
        if key not in _tables:
            _tables[key] = original.__get__(None, cls)(*arguments, **named)
        # A copy: somebody's own operators may be added to it.
        table = copy(_tables[key])
        table.functions = {operator: list(ways) for operator, ways in table.functions.items()}
        return table

    # Replaced for a while, which types do not provide for: PyTorch has no parameter for the table.
    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]  # as it was
