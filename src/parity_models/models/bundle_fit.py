"""Checks of a bundle: its models fit each other, the code and the manifest, and claims about slots
are true. What does not fit is a BundleError."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import NO_NETWORKS, Code, CodeSpec, Networks
from parity_models.errors import BundleError, CodeError, ModelError
from parity_models.models.envelope import Envelope
from parity_models.models.manifest import Manifest, ModelFile
from parity_models.models.onnx_model import OnnxModel, why_it_fails
from parity_models.models.queries import renamed
from parity_models.models.signature import Signature, Tensor
from parity_models.models.tensor import Layout

Array = NDArray[Any]
Shape = tuple[int, ...]

BOX: Shape = (4,)
"""The shape of a box: its edges."""


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
            f"{name} is code of somebody's own, and names out of a bundle are not imported; if you "
            f"trust it, allow it with --allow-code {name}"
        )
    imitated = manifest.imitated_output
    output = None if imitated is None else imitated.fixed
    if output is None:
        raise CodeError(
            "stand-ins imitate one output of fixed shape, which a bundle names (`imitated`) where "
            "the deployed model has several: "
            f"{', '.join(map(str, manifest.deployed.signature.outputs))}"
        )
    return code_over(manifest.code, manifest.deployed.signature, output.shape, networks)


def code_over(
    spec: CodeSpec, queries: Signature, output: Shape, networks: Networks = NO_NETWORKS
) -> Code:
    """Return the code for queries of a signature and predictions of shape `output`. Raises
    CodeError."""
    return Code(spec, {each.name: each.shape for each in queries.inputs}, output, networks)


def parity_inputs(code: Code, deployed: Signature) -> tuple[Tensor, ...]:
    """Return the inputs of parity models. Raises ValueError for those that are too large."""
    return tuple(
        Tensor(each.name, each.datatype, code.parity_shapes[each.name], each.padding)
        for each in deployed.inputs
    )


def check_fit(path: Path, manifest: Manifest, allowed: Collection[str]) -> None:
    """Raise BundleError unless the models that the manifest at `path` describes fit each other and
    the code.

    `allowed`: see `code_of`.
    """
    _check_code(path, manifest, allowed)
    for backup in manifest.backups:
        _check_backup(path, manifest, backup)
    _check_counts(path, manifest)
    output = manifest.imitated_output
    for stand_in, calibration in manifest.calibration.items():
        if calibration.kind == "boxes" and (output is None or output.shape != BOX):
            raise BundleError(
                f"{path}: the gate of the {stand_in} is one of boxes, predictions of shape "
                f"{list(BOX)}, where the deployed model's are {output}"
            )


def _check_counts(path: Path, manifest: Manifest) -> None:
    """Trainings, times and accuracies are of as many backups as there are."""
    times, accuracy = manifest.inference_times, manifest.accuracy
    for what, said in (
        ("trainings", manifest.backup_trainings),
        ("times", () if times is None else times.backups),
        ("accuracies", () if accuracy is None else accuracy.backup_accuracies),
    ):
        if said and len(said) != len(manifest.backups):
            raise BundleError(
                f"{path} names {len(manifest.backups)} backups and the {what} of {len(said)}"
            )


def _check_code(path: Path, manifest: Manifest, allowed: Collection[str]) -> None:
    try:
        code = code_of(manifest, allowed)
    except CodeError as error:
        raise BundleError(f"{path} names a code that cannot be built: {error}") from error
    rows = 0 if code is None else code.r
    if len(manifest.parity) != rows:
        raise BundleError(
            f"{path} names {len(manifest.parity)} parity models where its code needs {rows}"
        )
    if code is None:
        return
    deployed = manifest.deployed.signature
    output = manifest.imitated_output
    assert output is not None
    if "encoder" not in code.network_shapes:
        queries = deployed.smallest.input
        try:  # no rows: only types and shapes count
            code.encode([queries.split(queries.zeros(0))] * code.k)
        except CodeError as error:
            raise BundleError(f"{path}: {error}") from error
    if output.dtype.kind != "f":
        raise BundleError(
            f"{path}: the deployed model's output is {output.datatype}; decoders "
            "compute with predictions, which needs floating point"
        )
    if manifest.coders.keys() != code.network_shapes.keys():
        raise BundleError(
            f"{path} holds the networks {sorted(manifest.coders)} of coders, where its code "
            f"({code.spec}) needs {sorted(code.network_shapes)}"
        )
    why = f"the code ({code.spec}) over the deployed model's {deployed} and {output} needs"
    try:
        taken = parity_inputs(code, deployed)
    except ValueError as error:
        raise BundleError(f"{path}: parity queries are too large: {error}") from error
    given = Tensor(output.name, output.datatype, code.parity_output_shape)
    for model in manifest.parity:
        _check_stand_in(path, manifest, model, taken, given, why)
    for name, coder in manifest.coders.items():
        shapes = code.network_shapes[name]
        datatype = deployed.inputs[0].datatype if name == "encoder" else output.datatype
        inside, outside = (Tensor("x", datatype, shape) for shape in shapes)
        _check_tensors(path, coder, "input", [inside], why)
        _check_tensors(path, coder, "output", [outside], why)


def _check_backup(path: Path, manifest: Manifest, backup: ModelFile) -> None:
    output = manifest.imitated_output
    if output is None:
        raise BundleError(
            f"{path} does not name the output that its backup imitates, of "
            f"{', '.join(map(str, manifest.deployed.signature.outputs))}; say which (`imitated`)"
        )
    why = "a backup for the deployed model needs"
    _check_stand_in(path, manifest, backup, manifest.deployed.signature.inputs, output, why)


def _check_stand_in(
    path: Path,
    manifest: Manifest,
    model: ModelFile,
    inputs: Sequence[Tensor],
    output: Tensor,
    why: str,
) -> None:
    """The model takes these inputs and gives this output, with the axes of the deployed model."""
    deployed, own = manifest.deployed.signature, model.signature
    if deployed.batch or own.batch:
        raise BundleError(
            f"{path}: the batch axis of a model is fixed, so that it is served exact; leave the "
            "stand-ins out"
        )
    if output.fixed is None:
        raise BundleError(
            f"{path}: the output {output} that stand-ins are to imitate has no fixed shape, so "
            "that it is served exact; leave the stand-ins out, or imitate another"
        )
    _check_tensors(path, model, "input", inputs, why)
    _check_tensors(path, model, "output", [output], why)
    for name, axis in own.axes.items():
        if deployed.axes.get(name) != axis:
            raise BundleError(
                f"{path}: {model.file} has other buckets along {name!r} than the deployed model"
            )


def _check_tensors(
    path: Path, model: ModelFile, role: str, needed: Sequence[Tensor], why: str
) -> None:
    """The tensors of one kind that the model has are these; one alone may have another name."""
    found = model.signature.inputs if role == "input" else model.signature.outputs
    fits = len(found) == len(needed) and all(
        (one.datatype, one.shape) == (other.datatype, other.shape)
        and (one.name == other.name or len(needed) == 1)
        for one, other in zip(found, needed, strict=True)
    )
    if not fits:
        said = " and ".join(f"{each.datatype} {_dims(each)}" for each in needed)
        if len(needed) > 1:
            said = ", ".join(map(str, needed))
        raise BundleError(
            f"{path}: {model.file} has {role} {', '.join(map(str, found))}, where {why} {said}"
        )


def _dims(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def check_slotwise(
    manifest: Manifest, contents: Mapping[str, bytes], allowed: Collection[str]
) -> None:
    """Raise BundleError unless parity models that are said to run on each slot by itself do so.

    `contents` are the models' files, by name; `allowed`: see `code_of`.
    """
    code = code_of(manifest, allowed)
    if code is None or not code.isolated:
        return
    queries = manifest.deployed.signature.smallest.input
    for parity in manifest.parity:
        if not parity.slotwise:
            continue
        leak = find_leak(code, queries, _loaded(parity, contents))
        if leak is not None:
            changed, other = leak
            raise BundleError(
                f"{parity.file} is said to run on each slot by itself, but what is in slot "
                f"{changed} changes the prediction for slot {other}; leave slotwise out"
            )


def check_slot(manifest: Manifest, contents: Mapping[str, bytes], allowed: Collection[str]) -> None:
    """Raise BundleError unless backups that are said to be one slot of a parity model are that.

    `contents` and `allowed`: see `check_slotwise`.
    """
    code = code_of(manifest, allowed)
    parity = manifest.parity[0] if manifest.parity else None
    for backup in manifest.backups:
        if backup.slot and (
            code is None
            or parity is None
            or not parity.slotwise
            or not is_slot(code, _loaded(parity, contents), _loaded(backup, contents))
        ):
            raise BundleError(
                f"{backup.file} is said to be one slot of the parity model, but answers otherwise "
                "than the first of that; leave slot out"
            )


def _loaded(model: ModelFile, contents: Mapping[str, bytes]) -> OnnxModel:
    return OnnxModel(contents[model.file], signature=model.signature)


def check_envelope(path: Path, manifest: Manifest, envelope: Envelope) -> None:
    """Raise BundleError unless the envelope at `path` is of the deployed model's inputs and of the
    imitated output."""
    inputs = manifest.deployed.signature.inputs
    if envelope.inputs != inputs:
        said, needed = (", ".join(map(str, each)) for each in (envelope.inputs, inputs))
        raise BundleError(f"{path} is of the inputs {said}, the deployed model's are {needed}")
    output, found = manifest.imitated_output, envelope.outputs.shape
    if output is None or output.shape != found:
        needed = "" if output is None else _dims(output)
        raise BundleError(
            f"{path} is of outputs of shape {list(found)}, the deployed model's have {needed}"
        )


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


# Slots

ROUNDING = 1e-4
"""By how much of the largest output two computations of the same may differ."""

TRIED = 8
"""Groups that are tried of each slot, as well as those with extreme values in it."""


def find_leak(code: Code, queries: Layout, model: OnnxModel) -> tuple[int, int] | None:
    """Return two slots of `code`, where a query in the first changes the prediction of `model` for
    the second.

    None if no bit of another slot's prediction changes, whatever is put into a slot: honest-looking
    values, zeros, and the largest numbers. The model takes the code's parity queries, and its
    decoder is one that reads slots off apart.
    """
    rng = np.random.default_rng(0)
    first = [_draw(rng, queries) for _ in range(code.k)]
    before = _predictions(code, model, first)
    for slot in range(code.k):
        for changed in _changes(rng, queries):
            group = [changed if i == slot else query for i, query in enumerate(first)]
            after = _predictions(code, model, group)
            for other in range(code.k):
                if other != slot and not np.array_equal(before[other], after[other], True):
                    return slot, other
    return None


def is_slot(code: Code, parity: OnnxModel, backup: OnnxModel) -> bool:
    """Return whether `backup` answers a query as `parity`, whose slots `code` keeps apart, does in
    the first.

    As nearly as rounding allows: outputs of a batch of one need not be bit by bit those of a larger
    one.
    """
    if not code.isolated:
        return False
    rng = np.random.default_rng(0)
    queries = backup.signature.smallest.input
    for _ in range(TRIED):
        group = [_draw(rng, queries) for _ in range(code.k)]
        # The code has the deployed model's names of inputs, the backup perhaps others.
        named = [dict(zip(code.query_shapes, each.values(), strict=True)) for each in group]
        expected = _predictions(code, parity, named)[0]
        found = _only(backup(group[0]))
        if found.shape != expected.shape:
            return False
        most = float(np.abs(expected).max(initial=0.0))
        if not np.allclose(found, expected, rtol=0, atol=ROUNDING * most):
            return False
    return True


Query = dict[str, Array]


def _predictions(code: Code, model: OnnxModel, queries: list[Query]) -> dict[int, Array]:
    # Code may have r parity models of the same kind; each is tried as if it were the only one here.
    with np.errstate(over="ignore", invalid="ignore"):
        output = _only(model(renamed(code.encode(queries)[0], model.signature)))
        return code.decode([None] * code.k, [output] + [None] * (code.r - 1))


def _only(outputs: Mapping[str, Array]) -> Array:
    (output,) = outputs.values()
    return output


def _changes(rng: np.random.Generator, queries: Layout) -> list[Query]:
    """Queries (1, *shape): extreme values, except of several inputs, whose integers may be
    indices."""
    drawn = [_draw(rng, queries) for _ in range(TRIED)]
    if queries.is_record:
        return [queries.split(queries.zeros(1)), *drawn]
    dtype = queries.dtype
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        extremes = [0.0, most, -most, min(1e30, most), 1e4, 1e-4]
    elif dtype.kind == "b":
        extremes = [0, 1]
    else:
        extremes = [0, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    filled = [queries.split(np.full((1, *queries.shape), value, dtype)) for value in extremes]
    return [*filled, *drawn]


def _draw(rng: np.random.Generator, queries: Layout) -> Query:
    return {
        each.name: rng.normal(size=(1, *each.shape)).astype(each.dtype)
        if each.dtype.kind == "f"
        else rng.integers(0, 2, (1, *each.shape)).astype(each.dtype)
        for each in queries.tensors
    }
