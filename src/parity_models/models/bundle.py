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
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from parity_models.codes import Code, CoderKind, CodeSpec, Networks
from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle_fit import (
    check_batches,
    check_envelope,
    check_fit,
    check_slotwise,
    code_of,
)
from parity_models.models.envelope import ENVELOPE, Envelope, decode_envelope, encode_envelope
from parity_models.models.gate import Calibration, Gates, StandIn
from parity_models.models.golden import GOLDEN_FILE, STORED, check_golden, encode_golden, golden
from parity_models.models.manifest import (
    NAME,
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
    encode_manifest,
)
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel, PinnedModel
from parity_models.models.signature import Signature
from parity_models.roles import BACKUPS, parity_role

__all__ = [
    "Accuracy",
    "Bundle",
    "InferenceTimes",
    "Manifest",
    "ModelFile",
    "NewModel",
    "StoredFile",
    "Training",
    "check_replaceable",
    "open_bundle",
    "with_accuracy",
    "with_calibration",
    "write_bundle",
]

File = TypeVar("File", bound=ModelFile)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True)
class NewModel:
    """A model to be put into a bundle: its ONNX file or the file's content, and its network.

    Parity models that run on each slot separately are `slotwise`; a backup that is one such slot is
    `slot`. Where the file does not declare all of the model's `signature`, it is given.
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
    is what was checked, or an error. `allowed` are the names of users' own classes that its code
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
        """The levels of agreement that stand-ins are calibrated for, and their coverage."""
        return Gates(self.manifest.calibration)

    @property
    def isolated(self) -> bool:
        """True if it was tested that one query cannot change another's reconstruction."""
        code = code_of(self.manifest, self.allowed)
        return code is None or (
            code.isolated and all(parity.slotwise for parity in self.manifest.parity)
        )

    def stored(self, model: ModelFile) -> NewModel:
        """Return a model of this bundle, to be put into another."""
        slotwise, slot = (getattr(model, mark, False) for mark in ("slotwise", "slot"))
        return NewModel(self.path / model.file, model.network, slotwise, slot, model.signature)

    def content(self, stored: StoredFile) -> bytes:
        """Return the content of a file of this bundle. Raises BundleError if it has changed."""
        return _read_stored(self.path / stored.file, stored)

    def pinned(self, model: ModelFile) -> PinnedModel:
        """Return a model of this bundle, to be loaded later."""
        return PinnedModel(self.path / model.file, model.sha256, model.signature)

    def envelope(self) -> Envelope | None:
        """Return the envelope of the inputs that stand-ins learned from.

        None for a bundle without stand-ins and for one of before there were envelopes. Raises
        BundleError if the file was changed since the bundle was opened.
        """
        stored = self.manifest.envelope
        if stored is None:
            return None
        content = self.content(stored)
        with _about(self.path / stored.file):
            envelope = decode_envelope(content, self.manifest.deployed.signature.inputs)
            check_envelope(self.manifest, envelope)
        return envelope

    def code(self) -> Code | None:
        """Return the code, or None for a bundle without one.

        Learned encoders and decoders compute in ONNX Runtime, on one thread. Raises BundleError if
        their files were changed since the bundle was opened.
        """
        coders = {
            name: OnnxModel(self.content(model), signature=model.signature)
            for name, model in self.manifest.coders.items()
        }
        return code_of(self.manifest, self.allowed, _networks(coders))


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
    with _about(folder / MANIFEST):
        check_fit(manifest, allow_code)
    bundle = Bundle(folder, manifest, digest, frozenset(allow_code))
    models = {}
    for each in manifest.models:
        content = bundle.content(each)
        try:
            path = folder / each.file
            models[each.file] = OnnxModel(content, signature=each.signature, name=f"{path}")
        except ModelError as error:
            raise BundleError(str(error)) from error
    files = {each.file: bundle.content(each) for each in manifest.files}
    bundle.envelope()
    if GOLDEN_FILE in files:
        with _about(folder / GOLDEN_FILE):
            check_golden(files[GOLDEN_FILE], _stand_ins(manifest, models))
    return bundle


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
    keep next to the models, by name. An existing bundle is replaced; any other folder that is not
    empty is refused.

    Raises:
        BundleError: for that, for models that do not fit each other or the code, for parity models
            marked slotwise that are not, for more backups than a bundle may have, and when the disk
            refuses.

    """
    folder = Path(path).resolve()
    check_replaceable(folder)
    if not re.fullmatch(NAME, name):
        raise BundleError(
            f"a model cannot be called {name!r}; choose up to 128 letters, digits, '.', '_' and "
            "'-', the first a letter or a digit"
        )
    if len(backups) > len(BACKUPS):
        raise BundleError(f"a bundle has {len(BACKUPS)} backups at most; got {len(backups)}")
    new = _Contents()
    manifest = Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        deployed=new.add_model("deployed.onnx", deployed, ModelFile),
        imitated=imitated,
        code=code,
        parity=tuple(
            new.add_model(f"{parity_role(j)}.onnx", model, ParityFile, slotwise=model.slotwise)
            for j, model in enumerate(parity)
        ),
        coders={
            name: new.add_model(f"{name}.onnx", model, ModelFile)
            for name, model in (coders or {}).items()
        },
        backups=tuple(
            new.add_model(f"{role}.onnx", model, BackupFile, slot=model.slot)
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
    with _about(folder / MANIFEST):
        decode_manifest(encode_manifest(manifest))  # follows the schema
        check_fit(manifest, allowed)
    coding = {kind: new.models[each.file] for kind, each in manifest.coders.items()}
    built = code_of(manifest, allowed, _networks(coding))
    check_slotwise(manifest, new.models, built)
    if envelope is not None:
        with _about(folder / ENVELOPE):
            check_envelope(manifest, envelope)
    if manifest.parity or manifest.backups:
        queries = manifest.deployed.signature.smallest.input
        found = golden(built, queries, envelope, _stand_ins(manifest, new.models), STORED)
        stored = new.add(GOLDEN_FILE, encode_golden(found))
        manifest = msgspec.structs.replace(manifest, files=(*manifest.files, stored))
    encoded = encode_manifest(manifest)
    _replace_folder(folder, {**new.files, MANIFEST: encoded})
    return Bundle(folder, *decode_manifest(encoded), allowed)


class _Contents:
    """The `files` of a new bundle, by name, each once, and its `models`.

    Raises BundleError for content that a bundle cannot hold.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.models: dict[str, OnnxModel] = {}

    def add(self, file: str, content: bytes | Path) -> StoredFile:
        if file in self.files or file == MANIFEST:
            raise BundleError(f"a bundle cannot hold two files called {file}")
        content = content if isinstance(content, bytes) else _read_file(content, MAX_MODEL_BYTES)
        self.files[file] = content
        return StoredFile(file, hashlib.sha256(content).hexdigest(), len(content))

    def add_model(self, file: str, model: NewModel, kind: type[File], **marks: Any) -> File:
        stored = self.add(file, model.onnx)
        try:
            runnable = OnnxModel(self.files[file], signature=model.signature)
            check_batches(runnable)
        except ModelError as error:
            raise BundleError(f"the model for {file} cannot be used: {error}") from error
        self.models[file] = runnable
        described = msgspec.structs.asdict(stored)
        described |= {"signature": runnable.signature, "network": model.network}
        return kind(**described, **marks)

    def add_envelope(self, envelope: Envelope) -> EnvelopeFile:
        stored = self.add(ENVELOPE, encode_envelope(envelope))
        described = msgspec.structs.asdict(stored)
        return EnvelopeFile(
            **described, false_alarms=envelope.false_alarms, held_out=envelope.held_out
        )


def _stand_ins(manifest: Manifest, models: Mapping[str, OnnxModel]) -> dict[str, OnnxModel]:
    """Return the stand-ins by their roles, of all `models` by their files."""
    roles = {parity_role(j): each.file for j, each in enumerate(manifest.parity)}
    roles |= {role: each.file for role, each in manifest.backup_roles.items()}
    return {role: models[file] for role, file in roles.items()}


def _networks(coders: Mapping[CoderKind, OnnxModel]) -> Networks:
    """Return models with one input and one output as functions of arrays."""

    def function(model: OnnxModel) -> Callable[[Any], Any]:
        (taken,), (given,) = model.signature.inputs, model.signature.outputs
        return lambda rows: model({taken.name: rows})[given.name]

    return Networks(**{name: function(model) for name, model in coders.items()})


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("parity-models", "numpy", "onnxruntime", "onnx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def with_accuracy(bundle: Bundle, accuracy: Accuracy) -> Bundle:
    """Put measured accuracies into the bundle's manifest, and return the bundle with them.

    Raises BundleError if the bundle on disk is no longer this one, if it cannot be written, and for
    accuracies that are not finite.
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
    path = bundle.path / MANIFEST
    encoded = encode_manifest(msgspec.structs.replace(bundle.manifest, **measured))
    try:
        manifest, digest = decode_manifest(encoded)
    except BundleError as error:
        raise BundleError(
            f"{what} that are NaN or infinite, of models that predict such values, are not put "
            f"into {bundle.path}: its {MANIFEST} {error}"
        ) from error
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(encoded)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    return replace(bundle, manifest=manifest, digest=digest)


# Files


def check_replaceable(folder: Path) -> None:
    """Raise BundleError if a bundle could not be written to `folder`: something else is there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        _read_manifest(folder)
    except BundleError as error:
        raise BundleError(
            f"{folder} exists and is not a bundle that could be replaced ({error}); "
            "choose another folder"
        ) from error


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest and its digest."""
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}; make one with: parm parity")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; give the folder that holds {MANIFEST}")
    path = folder / MANIFEST
    if not path.exists():
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}")
    content = _read_file(path, MAX_MANIFEST_BYTES)
    with _about(path):
        return decode_manifest(content)


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Say in errors which file is unsound."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path} {error}") from error


def _read_stored(path: Path, named: StoredFile) -> bytes:
    """Return the content of the file at `path`. Raises BundleError unless it has the size and
    sha256 that the manifest names."""
    content = _read_file(path, MAX_MODEL_BYTES, named.size)
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST}; "
            "copy the bundle again or make it anew"
        )
    return content


def _read_file(path: Path, most: int, size: int | None = None) -> bytes:
    """Return the content of a regular file that does not lie, by links, outside its folder.

    Raises BundleError for any other, for one of another `size`, or of more bytes than `most`, and
    where it cannot be read.
    """
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
    """Make `folder` hold `contents`, by file name, and nothing else, in one step.

    Raises BundleError, with the folder as it was, where the system refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as aside:
            new, old = Path(aside, "new"), Path(aside, "old")
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
