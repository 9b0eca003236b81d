"""Whatever a user deploys - a bundle, an ONNX file, a torch module - opened as a bundle."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.export import export, floats
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import read_arrays
from parity_models.models.servable import read_servable

Deployed = Bundle | Path | nn.Module
"""A bundle, the path of one or of an ONNX file, or a module."""

OWN = "own"
"""What manifests call the network of a model that this package did not build."""


@contextmanager
def open_deployed(
    deployed: Deployed,
    query_shape: tuple[int, ...],
    allow_code: Collection[str] = (),
    queries: Path | None = None,
) -> Iterator[Bundle]:
    """`deployed` as a bundle that lasts as long as the context.

    A module is exported for queries of `query_shape`; other models say themselves what they
    take. With a file of `queries`, which tell how large dynamic axes become, an ONNX file may have
    several inputs and outputs, of any numbers. `allow_code`: see `open_bundle`. Raises
    BundleError or ModelError for what cannot be deployed.
    """
    if isinstance(deployed, Bundle):
        yield deployed
        return
    if isinstance(deployed, Path) and deployed.is_dir():
        yield open_bundle(deployed, allow_code)
        return
    signature = None
    if not isinstance(deployed, Path):
        content = _export(deployed, query_shape)
    else:
        arrays = None if queries is None or queries.is_dir() else read_arrays(queries)
        content, signature = read_servable(deployed, queries=arrays)
    with TemporaryDirectory() as folder:
        try:
            bundle = write_bundle(
                Path(folder, "deployed"), deployed=NewModel(content, OWN, signature=signature)
            )
        except BundleError as error:
            raise ModelError(f"the deployed model cannot be used: {error}") from error
        yield bundle


def _export(module: nn.Module, query_shape: tuple[int, ...]) -> bytes:
    try:
        content = export(module, [floats(query_shape)])
    except Exception as error:  # the user's module and the exporter may raise anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the module cannot be exported to ONNX for queries of shape {query_shape}: {why}"
        ) from error
    try:
        OnnxModel(content)
    except ModelError as error:
        raise ModelError(f"the module cannot be deployed: {error}") from error
    return content
