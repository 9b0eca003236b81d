"""Do the models of a bundle fit each other, the code and the manifest? Else a BundleError says what
does not."""

from collections.abc import Mapping
from pathlib import Path

from parity_models.codes import NO_NETWORKS, Code, Networks
from parity_models.errors import BundleError, CodeError, ModelError
from parity_models.models.bundle_files import MANIFEST, read_stored
from parity_models.models.envelope import Envelope
from parity_models.models.isolation import find_leak
from parity_models.models.manifest import Manifest, ModelFile
from parity_models.models.onnx_model import OnnxModel

Shape = tuple[int, ...]


def code_of(manifest: Manifest, networks: Networks = NO_NETWORKS) -> Code | None:
    """The code that the manifest names, with these networks. Raises CodeError."""
    if manifest.code is None:
        return None
    deployed = manifest.deployed
    return Code(manifest.code, deployed.input.shape, deployed.output.shape, networks)


def check_fit(path: Path, manifest: Manifest) -> None:
    """The models that the manifest at `path` describes fit each other and the code."""
    _check_code(path, manifest)
    if manifest.backup is not None:
        _check_backup(path, manifest.deployed, manifest.backup)


def _check_code(path: Path, manifest: Manifest) -> None:
    try:
        code = code_of(manifest)
    except CodeError as error:
        raise BundleError(f"{path} names a code that cannot be built: {error}") from error
    rows = 0 if code is None else code.r
    if len(manifest.parity) != rows:
        raise BundleError(
            f"{path} names {len(manifest.parity)} parity models where its code needs {rows}"
        )
    if code is None:
        return
    deployed = manifest.deployed
    if "encoder" not in code.network_shapes:
        try:
            code.encode([deployed.input.zeros(0)] * code.k)  # no rows: only types and shapes count
        except CodeError as error:
            raise BundleError(f"{path}: {error}") from error
    if deployed.output.dtype.kind != "f":
        raise BundleError(
            f"{path}: the deployed model's output is {deployed.output.datatype}; decoders "
            "compute with predictions, which needs floating point"
        )
    if manifest.coders.keys() != code.network_shapes.keys():
        raise BundleError(
            f"{path} holds the networks {sorted(manifest.coders)} of coders, where its code "
            f"({code.spec}) needs {sorted(code.network_shapes)}"
        )
    queries, predictions = deployed.input.datatype, deployed.output.datatype
    fits: list[tuple[ModelFile, tuple[str, Shape], tuple[str, Shape]]] = [
        (model, (queries, code.parity_shape), (predictions, code.parity_output_shape))
        for model in manifest.parity
    ]
    for name, model in manifest.coders.items():
        datatype = queries if name == "encoder" else predictions
        taken, given = code.network_shapes[name]
        fits.append((model, (datatype, taken), (datatype, given)))
    for model, input, output in fits:
        for role, spec, (datatype, shape) in (
            ("input", model.input, input),
            ("output", model.output, output),
        ):
            if (spec.datatype, spec.shape) != (datatype, shape):
                raise BundleError(
                    f"{path}: {model.file} has {role} {spec}, where the code ({code.spec}) "
                    f"over the deployed model's {deployed.input} and {deployed.output} needs "
                    f"{datatype} {list(shape)}"
                )


def _check_backup(path: Path, deployed: ModelFile, backup: ModelFile) -> None:
    for role, spec, needed in (
        ("input", backup.input, deployed.input),
        ("output", backup.output, deployed.output),
    ):
        if (spec.datatype, spec.shape) != (needed.datatype, needed.shape):
            raise BundleError(
                f"{path}: {backup.file} has {role} {spec}, where a backup for the deployed model "
                f"needs {needed.datatype} {list(needed.shape)}"
            )


def check_slotwise(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Parity models that are said to run on each slot by itself do so."""
    code = code_of(manifest)
    if code is None or not code.isolated:
        return
    for parity in manifest.parity:
        leak = find_leak(code, OnnxModel(contents[parity.file])) if parity.slotwise else None
        if leak is not None:
            changed, other = leak
            raise BundleError(
                f"{parity.file} is said to run on each slot by itself, but what is in slot "
                f"{changed} changes the prediction for slot {other}; leave slotwise out"
            )


def check_envelope(path: Path, manifest: Manifest, envelope: Envelope) -> None:
    """The envelope at `path` is of the deployed model's inputs and outputs."""
    deployed = manifest.deployed
    for role, found, needed in (
        ("inputs", envelope.shape, deployed.input.shape),
        ("outputs", envelope.output_shape, deployed.output.shape),
    ):
        if found != needed:
            raise BundleError(
                f"{path} is of {role} of shape {list(found)}, the deployed model's have "
                f"{list(needed)}"
            )


def check_model(path: Path, named: ModelFile) -> None:
    """The file at `path` is the model that the manifest names, with its inputs and outputs."""
    content = read_stored(path, named)
    try:
        model = OnnxModel(content)
    except ModelError as error:
        raise BundleError(f"{path}: {error}") from error
    for role, found, promised in (
        ("input", model.input, named.input),
        ("output", model.output, named.output),
    ):
        if found != promised:
            raise BundleError(f"{path} has {role} {found} where {MANIFEST} promises {promised}")


def check_batches(model: OnnxModel) -> None:
    """The batch axis is not only declared free: batches of 1 and 2 rows work, or a ModelError says
    how they fail."""
    for rows in (1, 2):
        shape = (rows, *model.output.shape)
        try:
            found = model(model.input.zeros(rows)).shape
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise ModelError(f"it fails on a batch of {rows}: {error}") from error
        if found != shape:
            raise ModelError(f"it gives shape {found} where it declares {shape}")
