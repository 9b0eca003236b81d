"""A bundle: the folder that holds a deployed model and its stand-ins.

    manifest.json     the bundle's content, with a hash of each file
    deployed.onnx     the deployed model
    parity-0.onnx …   one parity model per parity query, if the bundle has a code
    encoder.onnx      the network of a learned encoder; decoder.onnx likewise
    backup.onnx       a cheaper network for the same queries, if the bundle has one
    backup-2.onnx …   further ones, each slower and better than the one before
    envelope.msgpack  the range of queries that stand-ins learned from
    golden.msgpack    queries and outputs by which stand-ins are recognised

Opening a bundle checks all that can be checked, so that no holder of a Bundle need check again.
Nothing in a bundle is unpickled or evaluated; models are read by ONNX Runtime alone. Users' own
codes are imported only if the caller who opens the bundle names them as well.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from parity_models.codes import Code, CoderKind, CodeSpec, Networks
from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle_files import (
    MANIFEST,
    read_file,
    read_stored,
    replace_file,
    replace_folder,
)
from parity_models.models.bundle_fit import (
    check_batches,
    check_envelope,
    check_fit,
    check_slot,
    check_slotwise,
    code_of,
)
from parity_models.models.envelope import ENVELOPE, Envelope, decode_envelope, encode_envelope
from parity_models.models.gate import Calibration, Gates, StandIn
from parity_models.models.golden import GOLDEN_FILE, STORED, check_golden, encode_golden, golden
from parity_models.models.manifest import (
    Accuracy,
    BackupFile,
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
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel, PinnedModel
from parity_models.models.signature import Signature
from parity_models.models.tensor import TensorSpec
from parity_models.roles import BACKUPS, parity_role

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
    "with_calibration",
    "write_bundle",
]

MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True)
class NewModel:
    """A model to be put into a bundle: its ONNX file or the file's content, and its network.

    Parity models that run on each slot by itself are `slotwise`, a backup that is such a slot is
    `slot`. Where the file does not say all of the model's `signature`, it is given.
    """

    onnx: Path | bytes
    network: str
    slotwise: bool = False
    slot: bool = False
    signature: Signature | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle: its folder, its manifest and the manifest's digest.

    The folder may be replaced or changed later. What is read with `content`, `pinned` and `code`
    is what was checked, or an error. `allowed` are the names of classes of users' own that its code
    may be made of.
    """

    path: Path
    manifest: Manifest
    digest: str
    allowed: frozenset[str] = frozenset()

    @property
    def deployed_path(self) -> Path:
        return self.path / self.manifest.deployed.file

    @property
    def parity_paths(self) -> tuple[Path, ...]:
        """The parity models' files, in the order of the code's rows."""
        return tuple(self.path / model.file for model in self.manifest.parity)

    @property
    def backup_paths(self) -> tuple[Path, ...]:
        """The backups' files, the fastest first."""
        return tuple(self.path / model.file for model in self.manifest.backups)

    @property
    def gates(self) -> Gates:
        """The levels of agreement that stand-ins are calibrated for, and how much they cover."""
        return Gates(self.manifest.calibration)

    def stored(self, model: ModelFile) -> NewModel:
        """Return a model of this bundle, to be put into another."""
        slotwise = isinstance(model, ParityFile) and model.slotwise
        slot = isinstance(model, BackupFile) and model.slot
        return NewModel(self.path / model.file, model.network, slotwise, slot, model.signature)

    @property
    def isolated(self) -> bool:
        """Whether it is sure that one query cannot change another's reconstruction."""
        code = code_of(self.manifest, self.allowed)
        return code is None or (
            code.isolated and all(parity.slotwise for parity in self.manifest.parity)
        )

    def envelope(self) -> Envelope | None:
        """Return the envelope of the inputs that stand-ins learned from.

        None for a bundle without stand-ins and for one of before there were envelopes. Raises
        BundleError if the file was changed since the bundle was opened.
        """
        return _read_envelope(self.path, self.manifest)

    def content(self, stored: StoredFile) -> bytes:
        """Return the content of a file of this bundle. Raises BundleError if it has changed."""
        return read_stored(self.path / stored.file, stored)

    def pinned(self, model: ModelFile) -> PinnedModel:
        """Return a model of this bundle, to be loaded later."""
        return PinnedModel(self.path / model.file, model.sha256, model.signature)

    def code(self) -> Code | None:
        """Return the code, or None for a bundle that holds only a deployed model.

        Learned encoders and decoders compute in ONNX Runtime, on one thread. Raises BundleError if
        their files were changed since the bundle was opened.
        """
        coders = self.manifest.coders.items()
        networks = _networks(
            {
                name: OnnxModel(self.content(model), signature=model.signature)
                for name, model in coders
            }
        )
        return code_of(self.manifest, self.allowed, networks)


def open_bundle(path: str | os.PathLike[str], allow_code: Collection[str] = ()) -> Bundle:
    """Open the bundle in folder `path` and check it.

    The manifest follows its schema and its digest; every file is there with the size and hash
    that it names; models have the inputs and outputs that it names, with a free batch axis, and
    fit the code; stand-ins answer the golden queries as where the bundle was made.

    Args:
        path: the folder.
        allow_code: users' own encoders and decoders, package.module:Class, that the bundle may
            name. They are imported if it does, and others are refused.

    Raises:
        BundleError: says which file is wrong, and how.

    """
    folder = Path(path)
    manifest, digest = _read_manifest(folder)
    check_fit(folder / MANIFEST, manifest, allow_code)
    models = {
        model.file: _open_model(folder / model.file, model)
        for model in (
            manifest.deployed,
            *manifest.parity,
            *manifest.coders.values(),
            *manifest.backups,
        )
    }
    files = {stored.file: read_stored(folder / stored.file, stored) for stored in manifest.files}
    _read_envelope(folder, manifest)
    if GOLDEN_FILE in files:
        try:
            check_golden(files[GOLDEN_FILE], _stand_ins(manifest, models))
        except BundleError as error:
            raise BundleError(f"{folder / GOLDEN_FILE} {error}") from error
    return Bundle(folder, manifest, digest, frozenset(allow_code))


def write_bundle(
    path: str | os.PathLike[str],
    *,
    deployed: NewModel,
    parity: Sequence[NewModel] = (),
    coders: Mapping[CoderKind, NewModel] | None = None,
    backups: Sequence[NewModel] = (),
    code: CodeSpec | None = None,
    imitated: str | None = None,
    name: str = "model",
    deployed_training: Training | None = None,
    parity_training: Training | None = None,
    backup_trainings: Sequence[Training | None] = (),
    accuracy: Accuracy | None = None,
    inference_times: InferenceTimes | None = None,
    calibration: Mapping[StandIn, Calibration] | None = None,
    envelope: Envelope | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> Bundle:
    """Write a bundle into folder `path`, whole or not at all.

    `imitated` is the output that stand-ins give, of several. `backups` come the fastest first: a
    query that one may not answer is asked of those after it alone. `files` are further files to
    keep beside the models, by name. A bundle that is there already is replaced; any other folder
    that is not empty is refused. Raises BundleError for that, for models that do not fit each other
    or the code, for parity models that are said to be slotwise or a backup for a slot of one, and
    are not, for more backups than a bundle may have, and when the disk refuses.
    """
    folder = Path(path).resolve()
    check_replaceable(folder)
    if len(backups) > len(BACKUPS):
        raise BundleError(f"a bundle has {len(BACKUPS)} backups at most; got {len(backups)}")
    new = _Contents()
    manifest = Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        deployed=new.add_model("deployed.onnx", deployed),
        imitated=imitated,
        code=code,
        parity=tuple(new.add_parity(f"parity-{j}.onnx", model) for j, model in enumerate(parity)),
        coders={
            name: new.add_model(f"{name}.onnx", model) for name, model in (coders or {}).items()
        },
        backups=tuple(
            new.add_backup(f"{role}.onnx", model)
            for role, model in zip(BACKUPS, backups, strict=False)
        ),
        envelope=None if envelope is None else new.add_envelope(envelope),
        files=tuple(
            new.add(file, content) for file, content in (files or {}).items() if file != GOLDEN_FILE
        ),
        deployed_training=deployed_training,
        parity_training=parity_training,
        backup_trainings=tuple(backup_trainings),
        accuracy=accuracy,
        inference_times=inference_times,
        calibration=dict(calibration or {}),
        versions=_versions(),
    )
    allowed = frozenset(manifest.code.own if manifest.code else ())
    _checked(manifest)
    check_fit(folder / MANIFEST, manifest, allowed)
    check_slotwise(manifest, new.files, allowed)
    check_slot(manifest, new.files, allowed)
    if envelope is not None:
        check_envelope(folder / ENVELOPE, manifest, envelope)
    if manifest.parity or manifest.backups:
        loaded = {name: new.models[each.file] for name, each in manifest.coders.items()}
        built = code_of(manifest, allowed, _networks(loaded))
        models = _stand_ins(manifest, new.models)
        queries = manifest.deployed.signature.smallest.input
        content = encode_golden(golden(built, queries, envelope, models, STORED))
        stored = new.add(GOLDEN_FILE, content)
        manifest = msgspec.structs.replace(manifest, files=(*manifest.files, stored))
    encoded = encode_manifest(manifest)
    replace_folder(folder, {**new.files, MANIFEST: encoded})
    return Bundle(folder, _checked(manifest), digest_of(encoded), allowed)


def _checked(manifest: Manifest) -> Manifest:
    """The manifest as it is read again. Raises BundleError if it does not follow the schema."""
    try:
        return decode_manifest(encode_manifest(manifest))
    except BundleError as error:
        raise BundleError(f"the bundle's {MANIFEST} {error}") from error


class _Contents:
    """The `files` of a bundle that is to be written, by name, each once, and its `models`.

    What cannot be put into a bundle is a BundleError.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.models: dict[str, OnnxModel] = {}

    def add(self, file: str, content: bytes | Path) -> StoredFile:
        if file in self.files or file == MANIFEST:
            raise BundleError(f"a bundle cannot hold two files called {file}")
        content = content if isinstance(content, bytes) else read_file(content, MAX_MODEL_BYTES)
        self.files[file] = content
        return StoredFile(file, hashlib.sha256(content).hexdigest(), len(content))

    def add_model(self, file: str, model: NewModel) -> ModelFile:
        return ModelFile(**self._describe(file, model))

    def add_parity(self, file: str, model: NewModel) -> ParityFile:
        return ParityFile(**self._describe(file, model), slotwise=model.slotwise)

    def add_backup(self, file: str, model: NewModel) -> BackupFile:
        return BackupFile(**self._describe(file, model), slot=model.slot)

    def add_envelope(self, envelope: Envelope) -> EnvelopeFile:
        stored = self.add(ENVELOPE, encode_envelope(envelope))
        return EnvelopeFile(
            stored.file, stored.sha256, stored.size, envelope.false_alarms, envelope.held_out
        )

    def _describe(self, file: str, model: NewModel) -> dict[str, Any]:
        stored = self.add(file, model.onnx)
        try:
            runnable = OnnxModel(self.files[file], signature=model.signature)
            check_batches(runnable)
        except ModelError as error:
            raise BundleError(f"the model for {file} cannot be used: {error}") from error
        self.models[file] = runnable
        described = msgspec.structs.asdict(stored)
        return {**described, "signature": runnable.signature, "network": model.network}


def _stand_ins(manifest: Manifest, models: Mapping[str, OnnxModel]) -> dict[str, OnnxModel]:
    """The stand-ins by their roles, of all `models` by their files."""
    roles = {parity_role(j): each.file for j, each in enumerate(manifest.parity)}
    roles |= {role: each.file for role, each in manifest.backup_roles.items()}
    return {role: models[file] for role, file in roles.items()}


def _networks(coders: Mapping[CoderKind, OnnxModel]) -> Networks:
    return Networks(**{name: _function(model) for name, model in coders.items()})


def _function(model: OnnxModel) -> Callable[[Any], Any]:
    """A model with one input and one output as a function of arrays."""
    (taken,), (given,) = model.signature.inputs, model.signature.outputs
    return lambda rows: model({taken.name: rows})[given.name]


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
    return _with(bundle, "accuracies", accuracy=accuracy)


def with_calibration(bundle: Bundle, calibration: Mapping[StandIn, Calibration]) -> Bundle:
    """Put the gates of the bundle's stand-ins into its manifest, and return the bundle with them.

    Raises BundleError as `with_accuracy` does.
    """
    return _with(bundle, "gates", calibration=dict(calibration))


def _with(bundle: Bundle, what: str, **measured: object) -> Bundle:
    if _read_manifest(bundle.path)[1] != bundle.digest:
        raise BundleError(f"{bundle.path} was replaced in the meantime; evaluate the new bundle")
    manifest = msgspec.structs.replace(bundle.manifest, **measured)
    encoded = encode_manifest(manifest)
    try:
        decode_manifest(encoded)
    except BundleError as error:
        raise BundleError(
            f"{what} that are NaN or infinite, of models that predict such values, are not put "
            f"into {bundle.path}: its {MANIFEST} {error}"
        ) from error
    try:
        replace_file(bundle.path / MANIFEST, encoded)
    except OSError as error:
        raise BundleError(f"cannot write {bundle.path / MANIFEST}: {error.strerror}") from error
    return replace(bundle, manifest=manifest, digest=digest_of(encoded))


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest and its digest."""
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}; make one with: parm parity")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give the folder that holds {MANIFEST}")
    path = folder / MANIFEST
    if not path.exists():
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}")
    content = read_file(path, MAX_MANIFEST_BYTES)
    try:
        return decode_manifest(content), digest_of(content)
    except BundleError as error:
        raise BundleError(f"{path} {error}") from error


def _open_model(path: Path, named: ModelFile) -> OnnxModel:
    """The model at `path`. Raises BundleError unless it is the one that the manifest names."""
    content = read_stored(path, named)
    try:
        return OnnxModel(content, signature=named.signature)
    except ModelError as error:
        raise BundleError(f"{path}: {error}") from error


def _read_envelope(folder: Path, manifest: Manifest) -> Envelope | None:
    if manifest.envelope is None:
        return None
    path = folder / manifest.envelope.file
    content = read_stored(path, manifest.envelope)
    try:
        envelope = decode_envelope(content, manifest.deployed.signature.inputs)
    except BundleError as error:
        raise BundleError(f"{path} {error}") from error
    check_envelope(path, manifest, envelope)
    return envelope


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("parity-models", "numpy", "onnxruntime", "onnx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
