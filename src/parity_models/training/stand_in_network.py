"""The network of a backup: named, built for what queries are, with what it is trained by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from parity_models.errors import TrainingError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.networks import NETWORKS, GroupNetwork, NamedNetwork
from parity_models.models.networks.bytes import MOST_VALUES
from parity_models.models.networks.queried import Queried, describe
from parity_models.models.onnx_tables import find_tables
from parity_models.models.own_encoder import with_encoder
from parity_models.models.own_layers import OwnLayers, find_layers
from parity_models.models.signature import Signature
from parity_models.training.own_network import named_network
from parity_models.training.recipes import Recipe, recipe_for
from parity_models.training.subject import Subject


@dataclass(frozen=True)
class StandInNetwork:
    """How a network is made, and what it is trained with."""

    make: Callable[[], nn.Module]
    recipe: Recipe


def stand_in_network(
    network: str, subject: Subject, describe: Callable[[], Queried]
) -> StandInNetwork:
    """The network called `network` for single queries of `subject`, which `describe` tells of.

    Raises TrainingError for a name that there is not, and for a network for other queries.
    """
    if subject.plain:
        named, shapes = (
            named_network(network),
            (subject.signature.input.shape, subject.output.shape),
        )
        return StandInNetwork(
            lambda: named.build(*shapes, (1, 1)), recipe_for(named.kind, "deployed", shapes[0])
        )
    try:
        kind, options = NETWORKS.parse(network)
    except UserError as error:
        raise TrainingError(str(error)) from error
    told = describe()
    if issubclass(kind, GroupNetwork):
        raise TrainingError(
            f"{network} answers several queries at once: it is a parity model, not a backup; train "
            "it with parm parity"
        )
    if not issubclass(kind, NamedNetwork):
        raise TrainingError(
            f"{network} takes one float32 input of fixed shape, the model {subject.signature}; "
            f"choose {' or '.join(fitting(told)) or 'a network of your own, package.module:Class'}"
        )
    return StandInNetwork(
        lambda: kind.build_named(options, told, subject.output.shape),
        recipe_for(kind, "deployed", ()),
    )


def group_network(
    network: str, subject: Subject, describe: Callable[[], Queried], k: int
) -> StandInNetwork:
    """The network called `network` for k queries of `subject` at once, see `is_group`."""
    kind, options = NETWORKS.parse(network)
    assert issubclass(kind, GroupNetwork)
    told = describe()
    return StandInNetwork(
        lambda: kind.build_group(options, told, subject.output.shape, k),
        recipe_for(kind, "parity", ()),
    )


def is_group(network: str) -> bool:
    """Is it a network for several queries at once? Raises TrainingError for a name that there is
    not."""
    try:
        return issubclass(NETWORKS.parse(network)[0], GroupNetwork)
    except UserError as error:
        raise TrainingError(str(error)) from error


def fitting(told: Queried) -> list[str]:
    """The names of the networks that can learn from such queries."""
    return [
        str(each.name) for each in NETWORKS if issubclass(each, NamedNetwork) and each.takes(told)
    ]


def queried(bundle: Bundle, rows: NDArray[Any]) -> Queried:
    """What `rows` of queries, and the deployed model's graph, tell of the inputs."""
    deployed = bundle.manifest.deployed
    signature = deployed.signature
    tables = find_tables(bundle.content(deployed), [each.name for each in signature.inputs])
    arrays = signature.kind_of(rows[0, ...]).input.split(rows)
    layers = _layers(bundle.content(deployed), signature, arrays)
    told = describe(arrays, signature.inputs, tables, layers)
    output = bundle.manifest.imitated_output
    if output is None:
        return told
    return with_encoder(told, bundle.content(deployed), signature, output.name)


def _layers(
    content: bytes, signature: Signature, arrays: dict[str, NDArray[Any]]
) -> OwnLayers | None:
    """The layers of a model that takes one row of small integers."""
    taken = signature.inputs[0]
    array = arrays[taken.name]
    if (
        len(signature.inputs) > 1
        or taken.axes
        or len(taken.shape) != 1
        or array.dtype.kind not in "iu"
    ):
        return None
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MOST_VALUES:
        return None
    return find_layers(content, taken.name, taken.dtype, array.shape[1], high + 1)
