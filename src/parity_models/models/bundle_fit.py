"""Checks of a bundle: its models fit each other and the code, and slotwise models keep slots apart.

Errors are BundleErrors without the path.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import NO_NETWORKS, Code, Networks
from parity_models.errors import BundleError, CodeError, ModelError
from parity_models.models.envelope import Envelope
from parity_models.models.manifest import Manifest, ModelFile
from parity_models.models.onnx_model import OnnxModel, why_it_fails
from parity_models.models.queries import renamed
from parity_models.models.signature import Layout, Signature, Tensor

Array = NDArray[Any]
Query = dict[str, Array]

BOX = (4,)
"""The shape of a box: its edges."""

TRIED = 8
"""Groups that are tried of each slot, as well as those with extreme values in it."""


def code_of(
    manifest: Manifest, allowed: Collection[str], networks: Networks = NO_NETWORKS
) -> Code | None:
    """Return the code that the manifest names, with these networks.

    Users' own encoders and decoders are imported only if they are `allowed`, by name. Raises
    CodeError.
    """
    if manifest.code is None:
        return None
    for name in sorted(manifest.code.own - set(allowed)):
        raise CodeError(
            f"{name} is a class of the bundle's maker, and names out of a bundle are not imported; "
            f"if you trust it, allow it with --allow-code {name}"
        )
    deployed, imitated = manifest.deployed.signature, manifest.imitated_output
    output = None if imitated is None else imitated.fixed
    if output is None:
        raise CodeError(
            "stand-ins imitate one output of fixed shape, which a bundle names (`imitated`) where "
            f"the deployed model has several: {', '.join(map(str, deployed.outputs))}"
        )
    shapes = {each.name: each.shape for each in deployed.inputs}
    return Code(manifest.code, shapes, output.shape, networks)


def parity_inputs(code: Code, deployed: Signature) -> tuple[Tensor, ...]:
    """Return the inputs of parity models. Raises ValueError for those that are too large."""
    return tuple(
        Tensor(each.name, each.datatype, code.parity_shapes[each.name], each.padding)
        for each in deployed.inputs
    )


def check_fit(manifest: Manifest, allowed: Collection[str]) -> None:
    """Raise BundleError unless the models that the manifest describes fit each other and the code.

    `allowed`: see `code_of`.
    """
    deployed, output = manifest.deployed.signature, manifest.imitated_output
    try:
        code = code_of(manifest, allowed)
    except CodeError as error:
        raise BundleError(f"names a code that cannot be built: {error}") from error
    rows = 0 if code is None else code.r
    if len(manifest.parity) != rows:
        raise BundleError(f"names {len(manifest.parity)} parity models where its code needs {rows}")
    if code is not None:
        assert output is not None
        _check_code(manifest, code, output)
    for backup in manifest.backups:
        if output is None:
            raise BundleError(
                "does not name the output that its backup imitates, of "
                f"{', '.join(map(str, deployed.outputs))}; say which (`imitated`)"
            )
        why = "a backup for the deployed model needs"
        _check_stand_in(deployed, backup, deployed.inputs, output, why)
    times, accuracy = manifest.inference_times, manifest.accuracy
    for what, values in (
        ("trainings", manifest.backup_trainings),
        ("times", () if times is None else times.backups),
        ("accuracies", () if accuracy is None else accuracy.backup_accuracies),
    ):
        if values and len(values) != len(manifest.backups):
            raise BundleError(
                f"names {len(manifest.backups)} backups and the {what} of {len(values)}"
            )
    for stand_in, calibration in manifest.calibration.items():
        if calibration.kind == "boxes" and (output is None or output.shape != BOX):
            raise BundleError(
                f"the gate of the {stand_in} is one of boxes, predictions of shape {list(BOX)}, "
                f"where the deployed model's are {output}"
            )


def _check_code(manifest: Manifest, code: Code, output: Tensor) -> None:
    deployed = manifest.deployed.signature
    try:
        inputs = parity_inputs(code, deployed)
        if "encoder" not in code.network_shapes:
            queries = deployed.smallest.input  # no rows: only types and shapes count
            code.encode([queries.split(queries.zeros(0))] * code.k)
    except CodeError as error:
        raise BundleError(str(error)) from error
    except ValueError as error:
        raise BundleError(f"parity queries are too large: {error}") from error
    if output.dtype.kind != "f":
        raise BundleError(
            f"the deployed model's output is {output.datatype}; decoders compute with predictions, "
            "which needs floating point"
        )
    if manifest.coders.keys() != code.network_shapes.keys():
        raise BundleError(
            f"holds the networks {sorted(manifest.coders)} of coders, where its code ({code.spec}) "
            f"needs {sorted(code.network_shapes)}"
        )
    why = f"the code ({code.spec}) over the deployed model's {deployed} and {output} needs"
    parity_output = Tensor(output.name, output.datatype, code.parity_output_shape)
    for model in manifest.parity:
        _check_stand_in(deployed, model, inputs, parity_output, why)
    for name, coder in manifest.coders.items():
        datatype = deployed.inputs[0].datatype if name == "encoder" else output.datatype
        taken, given = (Tensor("x", datatype, shape) for shape in code.network_shapes[name])
        _check_tensors(coder, "input", [taken], why)
        _check_tensors(coder, "output", [given], why)


def _check_stand_in(
    deployed: Signature, model: ModelFile, inputs: Sequence[Tensor], output: Tensor, why: str
) -> None:
    """The model takes these inputs and gives this output, with the axes of the deployed model."""
    if deployed.batch or model.signature.batch:
        raise BundleError(
            "the batch axis of a model is fixed, so that it is served exact; leave the stand-ins "
            "out"
        )
    if output.fixed is None:
        raise BundleError(
            f"the output {output} that stand-ins are to imitate has no fixed shape, so that it is "
            "served exact; leave the stand-ins out, or imitate another"
        )
    _check_tensors(model, "input", inputs, why)
    _check_tensors(model, "output", [output], why)
    for name, axis in model.signature.axes.items():
        if deployed.axes.get(name) != axis:
            raise BundleError(f"{model.file} has other buckets along {name!r} than {deployed}")


def _check_tensors(model: ModelFile, role: str, needed: Sequence[Tensor], why: str) -> None:
    """The tensors of one kind that the model has are these; one alone may have another name."""
    found = model.signature.inputs if role == "input" else model.signature.outputs
    fits = len(found) == len(needed) and all(
        (one.datatype, one.shape) == (other.datatype, other.shape)
        and (one.name == other.name or len(needed) == 1)
        for one, other in zip(found, needed, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, needed))
        if len(needed) == 1:
            wanted = wanted.removeprefix(f"{needed[0].name!r} ")
        raise BundleError(
            f"{model.file} has {role} {', '.join(map(str, found))}, where {why} {wanted}"
        )


def check_envelope(manifest: Manifest, envelope: Envelope) -> None:
    """Raise BundleError unless the envelope is of the deployed model's inputs and of the imitated
    output."""
    inputs, output = manifest.deployed.signature.inputs, manifest.imitated_output
    if envelope.inputs != inputs:
        found, needed = (", ".join(map(str, each)) for each in (envelope.inputs, inputs))
        raise BundleError(f"is of the inputs {found}, the deployed model's are {needed}")
    if output is None or output.shape != envelope.output_shape:
        found = str(list(envelope.output_shape))
        raise BundleError(f"is of outputs of shape {found}, the deployed model's is {output}")


def check_batches(model: OnnxModel) -> None:
    """Raise ModelError unless batches of 1 and 2 rows work: the batch axis is not only declared
    free."""
    kind = model.signature.smallest
    for rows in (1, 2):
        try:
            found = model(kind.input.split(kind.input.zeros(rows)))
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise ModelError(f"it fails on a batch of {rows}: {why_it_fails(error)}") from error
        for each in kind.output.tensors:
            shape = (rows, *each.shape)
            if found[each.name].shape != shape:
                raise ModelError(
                    f"it gives {each.name!r} of shape {found[each.name].shape} where it declares "
                    f"{shape}"
                )


def check_slotwise(manifest: Manifest, models: Mapping[str, OnnxModel], code: Code | None) -> None:
    """Raise BundleError unless parity models marked slotwise, of all `models` by file, treat the
    slots of the code separately."""
    for parity in manifest.parity:
        if not (parity.slotwise and code is not None and code.isolated):
            continue
        leak = find_leak(code, manifest.deployed.signature.smallest.input, models[parity.file])
        if leak is not None:
            raise BundleError(
                f"{parity.file} is marked slotwise, but what is in slot {leak[0]} changes the "
                f"prediction for slot {leak[1]}; leave slotwise out"
            )


def find_leak(code: Code, queries: Layout, model: OnnxModel) -> tuple[int, int] | None:
    """Return two slots of `code`, where a query in the first changes the prediction of `model` for
    the second.

    None if no bit of another slot's prediction changes, whatever is put into a slot: usual values,
    zeros, and the largest numbers. The decoder is one that reads slots off apart.
    """
    rng = np.random.default_rng(0)
    group = [queries.draw(rng, 1) for _ in range(code.k)]
    before = _predictions(code, model, group)
    for slot in range(code.k):
        for changed in _changes(rng, queries):
            after = _predictions(code, model, [*group[:slot], changed, *group[slot + 1 :]])
            for other in range(code.k):
                if other != slot and not np.array_equal(before[other], after[other], True):
                    return slot, other
    return None


def _predictions(code: Code, model: OnnxModel, queries: list[Query]) -> dict[int, Array]:
    # Code may have r parity models of the same kind; each is tried as if it were the only one here.
    with np.errstate(over="ignore", invalid="ignore"):
        (output,) = model(renamed(code.encode(queries)[0], model.signature)).values()
        return code.decode([None] * code.k, [output] + [None] * (code.r - 1))


def _changes(rng: np.random.Generator, queries: Layout) -> list[Query]:
    """Return queries (1, *shape): drawn ones and extreme values; of several inputs, whose integers
    may be indices, only zeros."""
    dtype, extremes = queries.dtype, list[float]()
    if not queries.is_record and dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        extremes = [most, -most, min(1e30, most), 1e4, 1e-4]
    elif not queries.is_record and dtype.kind != "b":
        extremes = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    filled = [np.full((1, *queries.shape), each, dtype) for each in extremes]
    drawn = [queries.draw(rng, 1) for _ in range(TRIED)]
    return [*map(queries.split, [queries.zeros(1), *filled]), *drawn]
