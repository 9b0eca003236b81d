"""The networks of a code: its parity models, and its learned encoder and decoder."""

from collections.abc import Iterator

from torch import nn

from parity_models.codes import Code, Networks


class CodedNetworks(nn.Module):
    """The r parity models of a code, which it iterates over, and its learned coders.

    They are trained together. Raises CodeError for a learned coder that does not say how it is
    built, and TrainingError for one that cannot be built for the code's shapes.
    """

    def __init__(self, models: nn.ModuleList, code: Code) -> None:
        super().__init__()
        self.models = models
        self.coders = nn.ModuleDict(
            {name: getattr(code, name).new_network() for name in code.network_shapes}
        )
        networks = Networks(**dict(self.coders.items()))
        self.code = Code(code.spec, code.query_shape, code.output_shape, networks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.models)
