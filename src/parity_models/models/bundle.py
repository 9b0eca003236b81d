"""A bundle: the folder that holds a deployed model and what makes it resilient.

    manifest.json     what is in the folder, and how to be sure of it
    deployed.onnx     the deployed model
    parity-0.onnx …   one parity model per parity query, if the bundle has a code
    encoder.onnx      the network of a learned encoder; decoder.onnx likewise
    backup.onnx       a cheaper network for the same queries, if the bundle has one
    envelope.msgpack  which inputs are like those that parity model and backup learned from

Opening a bundle checks all that can be checked, so that whoever holds a Bundle need not check
again. Nothing in a bundle is unpickled or evaluated; models are read by ONNX Runtime alone.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from parity_models.codes import NO_NETWORKS, Code, Coder, CodeSpec, Networks
from parity_models.errors import BundleError, CodeError, ModelError
from parity_models.models.envelope import (
    ENVELOPE,
    Envelope,
    decode_envelope,
    encode_envelope,
)
from parity_models.models.isolation import find_leak
from parity_models.models.manifest import (
    Accuracy,
    EnvelopeFile,
    InferenceTimes,
    Manifest,
    ModelFile,
    ParityFile,
    StoredFile,
    Training,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel
from parity_models.models.pinned_model import PinnedModel
from parity_models.models.tensor import TensorSpec

__all__ = [
    "Accuracy",
    "Bundle",
    "InferenceTimes",
    "Manifest",
    "ModelFile",
    "NewModel",
    "StoredFile",
    "TensorSpec",
    "Training",
    "check_replaceable",
    "open_bundle",
    "with_accuracy",
    "write_bundle",
]

Shape = tuple[int, ...]

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle: its folder, its manifest and the manifest's digest.

    The folder may be replaced or changed later. What is read with `content`, `pinned` and `code`
    is what was checked, or an error.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def deployed_path(self) -> Path:
        return self.path / self.manifest.deployed.file

    @property
    def parity_paths(self) -> tuple[Path, ...]:
        """The parity models' files, in the order of the code's rows."""
        return tuple(self.path / model.file for model in self.manifest.parity)

    @property
    def backup_path(self) -> Path | None:
        return None if self.manifest.backup is None else self.path / self.manifest.backup.file

    def stored(self, model: ModelFile) -> "NewModel":
        """A model of this bundle, to be put into another."""
        slotwise = isinstance(model, ParityFile) and model.slotwise
        return NewModel(self.path / model.file, model.network, slotwise)

    @property
    def isolated(self) -> bool:
        """Is it sure that what is in one query cannot change another's reconstruction?"""
        code = _code(self.manifest)
        return code is None or (
            code.isolated and all(parity.slotwise for parity in self.manifest.parity)
        )

    def envelope(self) -> Envelope | None:
        """The envelope of the inputs that stand-ins learned from.

        None for a bundle without stand-ins and for one of before there were envelopes. Raises
        BundleError if the file was changed since the bundle was opened.
        """
        return _read_envelope(self.path, self.manifest)

    def content(self, stored: StoredFile) -> bytes:
        """The content of a file of this bundle. Raises BundleError if it is another by now."""
        return _read_stored(self.path / stored.file, stored)

    def pinned(self, model: ModelFile) -> PinnedModel:
        """A model of this bundle, for whoever is to load it later."""
        return PinnedModel(self.path / model.file, model.sha256)

    def code(self) -> Code | None:
        """The code, or None for a bundle that holds only a deployed model.

        Learned encoders and decoders compute in ONNX Runtime, on one thread. Raises BundleError if
        their files were changed since the bundle was opened.
        """
        coders = {
            name: OnnxModel(self.content(model)) for name, model in self.manifest.coders.items()
        }
        return _code(self.manifest, Networks(coders.get("encoder"), coders.get("decoder")))


@dataclass(frozen=True)
class NewModel:
    """A model to be put into a bundle: its ONNX file or the file's content, and its network.

    `slotwise` is said of parity models that run on each slot by itself.
    """

    onnx: Path | bytes
    network: str
    slotwise: bool = False


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle in folder `path` and check it.

    The manifest follows its schema and its digest; every file is there with the size and hash
    that it names; models have the inputs and outputs that it names, with a free batch axis, and
    fit the code. Raises BundleError that says which file is wrong, and how.
    """
    folder = Path(path)
    manifest, digest = _read_manifest(folder)
    _check_fit(folder / MANIFEST, manifest)
    backups = () if manifest.backup is None else (manifest.backup,)
    for model in (manifest.deployed, *manifest.parity, *manifest.coders.values(), *backups):
        _check_model(folder / model.file, model)
    for stored in manifest.files:
        _read_stored(folder / stored.file, stored)
    _read_envelope(folder, manifest)
    return Bundle(folder, manifest, digest)


def write_bundle(
    path: str | os.PathLike[str],
    *,
    deployed: NewModel,
    parity: Sequence[NewModel] = (),
    coders: Mapping[Coder, NewModel] | None = None,
    backup: NewModel | None = None,
    code: CodeSpec | None = None,
    name: str = "model",
    deployed_training: Training | None = None,
    parity_training: Training | None = None,
    backup_training: Training | None = None,
    accuracy: Accuracy | None = None,
    inference_times: InferenceTimes | None = None,
    envelope: Envelope | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> Bundle:
    """Write a bundle into folder `path`, whole or not at all.

    `files` are further files to keep beside the models, by name. A bundle that is there already
    is replaced; any other folder that is not empty is refused. Raises BundleError for that, for
    models that do not fit each other or the code, for parity models that are said to be slotwise
    and are not, and when the disk refuses.
    """
    folder = Path(path).resolve()
    check_replaceable(folder)
    contents: dict[str, bytes] = {}

    def add(file: str, content: bytes | Path) -> StoredFile:
        if file in contents or file == MANIFEST:
            raise BundleError(f"a bundle cannot hold two files called {file}")
        content = content if isinstance(content, bytes) else _read(content, MAX_MODEL_BYTES)
        contents[file] = content
        return StoredFile(file, hashlib.sha256(content).hexdigest(), len(content))

    def add_model(file: str, model: NewModel) -> ModelFile:
        stored = add(file, model.onnx)
        try:
            runnable = OnnxModel(contents[file])
            _check_batches(runnable)
        except ModelError as error:
            raise BundleError(f"the model for {file} cannot be used: {error}") from error
        return ModelFile(
            stored.file, stored.sha256, stored.size, runnable.input, runnable.output, model.network
        )

    def add_parity(file: str, model: NewModel) -> ParityFile:
        return ParityFile(**msgspec.structs.asdict(add_model(file, model)), slotwise=model.slotwise)

    def add_envelope(envelope: Envelope) -> EnvelopeFile:
        stored = add(ENVELOPE, encode_envelope(envelope))
        return EnvelopeFile(
            stored.file, stored.sha256, stored.size, envelope.false_alarms, envelope.held_out
        )

    manifest = Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        deployed=add_model("deployed.onnx", deployed),
        code=code,
        parity=tuple(add_parity(f"parity-{j}.onnx", model) for j, model in enumerate(parity)),
        coders={name: add_model(f"{name}.onnx", model) for name, model in (coders or {}).items()},
        backup=None if backup is None else add_model("backup.onnx", backup),
        envelope=None if envelope is None else add_envelope(envelope),
        files=tuple(add(file, content) for file, content in (files or {}).items()),
        deployed_training=deployed_training,
        parity_training=parity_training,
        backup_training=backup_training,
        accuracy=accuracy,
        inference_times=inference_times,
        versions=_versions(),
    )
    encoded = encode_manifest(manifest)
    try:
        manifest = decode_manifest(encoded)
    except BundleError as error:
        raise BundleError(f"the bundle's {MANIFEST} {error}") from error
    _check_fit(folder / MANIFEST, manifest)
    _check_slotwise(manifest, contents)
    if envelope is not None:
        _check_envelope(folder / ENVELOPE, manifest, envelope)
    _replace_folder(folder, {**contents, MANIFEST: encoded})
    return Bundle(folder, manifest, digest_of(encoded))


def check_replaceable(folder: Path) -> None:
    """Raise BundleError if a bundle could not be written to `folder`: something else is there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        _read_manifest(folder)
    except BundleError as error:
        raise BundleError(
            f"{folder} is there already and is not a bundle that could be replaced ({error}); "
            "choose another folder"
        ) from error


def with_accuracy(bundle: Bundle, accuracy: Accuracy) -> Bundle:
    """Put measured accuracies into the bundle's manifest, and return the bundle with them.

    Raises BundleError if the bundle on disk is no longer this one, if it cannot be written, and for
    accuracies that are no numbers.
    """
    if _read_manifest(bundle.path)[1] != bundle.digest:
        raise BundleError(f"{bundle.path} was replaced in the meantime; evaluate the new bundle")
    manifest = msgspec.structs.replace(bundle.manifest, accuracy=accuracy)
    encoded = encode_manifest(manifest)
    try:
        decode_manifest(encoded)
    except BundleError as error:
        raise BundleError(
            f"accuracies that are NaN or infinite, of models that predict such values, are not put "
            f"into {bundle.path}: its {MANIFEST} {error}"
        ) from error
    try:
        _replace_file(bundle.path / MANIFEST, encoded)
    except OSError as error:
        raise BundleError(f"cannot write {bundle.path / MANIFEST}: {error.strerror}") from error
    return Bundle(bundle.path, manifest, digest_of(encoded))


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest and its digest."""
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}; make one with: parm parity")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give the folder that holds {MANIFEST}")
    path = folder / MANIFEST
    if not path.exists():
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}")
    content = _read(path, MAX_MANIFEST_BYTES)
    try:
        return decode_manifest(content), digest_of(content)
    except BundleError as error:
        raise BundleError(f"{path} {error}") from error


def _check_fit(path: Path, manifest: Manifest) -> None:
    """The models that the manifest at `path` describes fit each other and the code."""
    _check_code(path, manifest)
    if manifest.backup is not None:
        _check_backup(path, manifest.deployed, manifest.backup)


def _check_code(path: Path, manifest: Manifest) -> None:
    try:
        code = _code(manifest)
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


def _check_slotwise(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Parity models that are said to run on each slot by itself do so."""
    code = _code(manifest)
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


def _read_envelope(folder: Path, manifest: Manifest) -> Envelope | None:
    if manifest.envelope is None:
        return None
    path = folder / manifest.envelope.file
    content = _read_stored(path, manifest.envelope)
    try:
        envelope = decode_envelope(content)
    except BundleError as error:
        raise BundleError(f"{path} {error}") from error
    _check_envelope(path, manifest, envelope)
    return envelope


def _check_envelope(path: Path, manifest: Manifest, envelope: Envelope) -> None:
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


def _code(manifest: Manifest, networks: Networks = NO_NETWORKS) -> Code | None:
    if manifest.code is None:
        return None
    deployed = manifest.deployed
    return Code(manifest.code, deployed.input.shape, deployed.output.shape, networks)


def _check_model(path: Path, named: ModelFile) -> None:
    content = _read_stored(path, named)
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


def _check_batches(model: OnnxModel) -> None:
    """The batch axis is not only declared free: batches of 1 and 2 rows work."""
    for rows in (1, 2):
        shape = (rows, *model.output.shape)
        try:
            found = model(model.input.zeros(rows)).shape
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise ModelError(f"it fails on a batch of {rows}: {error}") from error
        if found != shape:
            raise ModelError(f"it gives shape {found} where it declares {shape}")


def _read_stored(path: Path, named: StoredFile) -> bytes:
    content = _read(path, MAX_MODEL_BYTES, named.size)
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST}; "
            "copy the bundle again or make it anew"
        )
    return content


def _read(path: Path, most: int, size: int | None = None) -> bytes:
    """The content of a regular file that does not lie, by links, outside its folder."""
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise BundleError(f"{path} links to a file outside the bundle; copy it into the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is missing or not a file; copy the bundle again")
        found = path.stat().st_size
        if size is not None and found != size:
            raise BundleError(
                f"{path} has {found} bytes where {MANIFEST} promises {size}; it is incomplete or "
                "was changed, copy the bundle again"
            )
        if found > most:
            raise BundleError(f"{path} has {found} bytes; {most} are allowed at most")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Make `folder` hold `contents` and nothing else, written beside it and then renamed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            for file, content in contents.items():
                (new / file).write_bytes(content)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise BundleError(f"cannot write the bundle {folder}: {error.strerror}") from error


def _replace_file(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("parity-models", "numpy", "onnxruntime", "onnx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
