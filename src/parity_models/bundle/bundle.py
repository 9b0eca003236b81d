"""A bundle: the folder that holds a deployed model and its stand-ins.

    manifest.json     the bundle's content, with a hash of each file
    deployed.onnx     the deployed model
    parity-0.onnx …   one parity model per parity query, if the bundle has a code
    backup.onnx       a cheaper network for the same queries, if the bundle has one
    envelope.msgpack  the range of queries that stand-ins learned from
    golden.msgpack    queries and outputs by which stand-ins are recognised

Opening a bundle checks all that can be checked, so that no holder of a Bundle need check again.
Nothing in a bundle is unpickled or evaluated; only ONNX Runtime reads models. Users' own
codes are imported only if the caller who opens the bundle names them as well.
"""

import contextlib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from parity_models.bundle.onnx_model import (
    ELSEWHERE,
    IS_ELSEWHERE,
    MAX_MODEL_BYTES,
    OnnxModel,
    PinnedModel,
    why_it_fails,
)
from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError, CodeError, ModelError, spell
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.tensors.queries import renamed
from parity_models.tensors.signature import Array, Layout, Named, Signature, Tensor
from parity_models.trust.envelope import ENVELOPE, Envelope, decode_envelope, encode_envelope
from parity_models.trust.gate import HEAD, Calibration, StandIn
from parity_models.trust.gates import Calibrations
from parity_models.trust.golden import GOLDEN_FILE, STORED, check_golden, encode_golden, golden

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20

FORMAT: Final = "parity-models-bundle"
FORMAT_VERSION: Final = 4

PROBABILITIES: Final = "probabilities"
"""Marks, in the recipe of parity models, that the deployed model gives probabilities."""

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
FileName = Annotated[str, msgspec.Meta(pattern=NAME)]
"""A file of the bundle's folder: no separators, so no way out of it."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ModelName = Annotated[str, msgspec.Meta(pattern=NAME)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0.0)]
Score = Annotated[float, msgspec.Meta(le=1.0)]


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in the bundle's folder, with its size in bytes."""

    file: FileName
    sha256: Sha256
    size: Count


class ModelFile(StoredFile, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An ONNX file, its signature, and the name of its architecture, for people.

    A parity model that is `slotwise` runs on each slot of its input separately. A backup that is a
    `slot` is one slot of the first parity model. Of a deployed model that is `elsewhere` there is
    no file, and its size is 0.
    """

    signature: Signature
    network: str
    slotwise: bool = False
    slot: bool = False

    @property
    def elsewhere(self) -> bool:
        return self.sha256 == ELSEWHERE


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracies on the whole test set of the bundle's task: values of `metric` over `queries`.

    `available_accuracy` is A_a; `degraded_accuracy` A_d, of reconstructions alone; `overall` is A_o
    by the fraction of predictions that is unavailable, as text ("0.1"); `agreement` the share of
    reconstructions that agree with the deployed model. `degraded_by_unavailable` is A_d with 1 to r
    of a group's predictions unavailable at once. Without a code there are only A_a and the
    number of queries.
    """

    metric: str
    available_accuracy: Score
    degraded_accuracy: Score | None
    overall: dict[str, Score]
    agreement: Score | None
    queries: Count
    degraded_by_unavailable: tuple[Score, ...] = ()
    backup_accuracy: Score | None = None


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The origin of a model's weights: data, seed, effort and recipe."""

    task: str
    inputs: Count
    inputs_sha256: Sha256
    seed: int
    epochs: Count
    seconds: float
    device: str
    recipe: dict[str, str | int | float | bool]


BATCH = 4
"""The size of the batch that is timed in addition to a single query."""
MAX_BATCH = 16
"""The largest batch size by default."""
UNIT = 0.1
"""Milliseconds that a batch of any size costs between the server and a worker."""


class InferenceTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Median milliseconds for a batch of one on one thread, where the bundle was made.

    All parity models have one network, so one time; `deployed_batch` is the deployed model's for a
    batch of BATCH. Ratios mean more than the times.
    """

    deployed: Milliseconds
    parity: Milliseconds | None
    backup: Milliseconds | None = None
    deployed_batch: Milliseconds | None = None

    @property
    def added(self) -> float:
        """The share of a single query's time that each further query adds to a batch."""
        batch = self.deployed_batch or BATCH * self.deployed
        return max(0.0, (batch / self.deployed - 1) / (BATCH - 1))

    @property
    def batch(self) -> int:
        """The default batch size: the largest that takes no longer than two single queries, with
        UNIT for each, at most MAX_BATCH; 1 if not even BATCH queries do."""
        added = self.added * self.deployed / (self.deployed + UNIT)
        most = int(1 + 1 / max(added, 1 / MAX_BATCH) + 1e-9)
        return min(most, MAX_BATCH) if most >= BATCH else 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a bundle: the deployed model, its code and one parity model per row of it, and
    a backup, a cheaper network for the same queries.

    `name` is the name under which the model is served. `imitated` is the output of the deployed
    model that stand-ins give; None: its only one. `labels` are the names of its classes, if the
    model is elsewhere and answers with these. `envelope` is there if a stand-in was trained
    here. `calibration` holds the gates of stand-ins, if they were measured. `versions` names the
    software that made the bundle.
    """

    format: Literal["parity-models-bundle"] = FORMAT
    format_version: Literal[4] = FORMAT_VERSION
    name: ModelName = "model"
    created: str
    deployed: ModelFile
    imitated: str | None = None
    labels: tuple[str, ...] = ()
    code: CodeSpec | None = None
    parity: tuple[ModelFile, ...] = ()
    backup: ModelFile | None = None
    envelope: StoredFile | None = None
    files: tuple[StoredFile, ...] = ()
    deployed_training: Training | None = None
    parity_training: Training | None = None
    backup_training: Training | None = None
    accuracy: Accuracy | None = None
    inference_times: InferenceTimes | None = None
    calibration: dict[StandIn, Calibration] = {}
    versions: dict[str, str]

    @property
    def task(self) -> str:
        """The task that the deployed model was trained on here; `own` if it is from elsewhere."""
        return "own" if self.deployed_training is None else self.deployed_training.task

    @property
    def models(self) -> dict[str, ModelFile]:
        """All ONNX files by role."""
        found: dict[str, ModelFile] = {DEPLOYED: self.deployed}
        found |= {parity_role(j): each for j, each in enumerate(self.parity)}
        return found if self.backup is None else found | {BACKUP: self.backup}

    @property
    def stored(self) -> dict[str, StoredFile]:
        """The further files, by name."""
        return {each.file: each for each in self.files}

    @property
    def imitated_output(self) -> Tensor | None:
        """The output of the deployed model that stand-ins give; None if it is not named."""
        outputs = self.deployed.signature.outputs
        if self.imitated is None:
            return outputs[0] if len(outputs) == 1 else None
        return next((each for each in outputs if each.name == self.imitated), None)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON, with its digest."""
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    return msgspec.json.format(
        msgspec.json.encode({**content, "digest": _digest(content)}), indent=2
    )


def decode_manifest(text: bytes) -> tuple[Manifest, str]:
    """Return the manifest in `text`, and its digest. Raises BundleError, without the path, if it
    is unsound."""
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
        header = msgspec.convert(content, _Header)
    except (ValueError, RecursionError) as error:  # also msgspec's errors, and UnicodeDecodeError
        raise BundleError(
            f"is damaged or not a bundle's manifest: {error}; copy or make the bundle again"
        ) from error
    if header.format != FORMAT:
        raise BundleError(f"has format {header.format!r}, not {FORMAT!r}: this is another file")
    if header.format_version != FORMAT_VERSION:
        newer = header.format_version > FORMAT_VERSION
        raise BundleError(
            f"has format version {header.format_version}, this software reads {FORMAT_VERSION}; "
            + ("install a newer parity-models" if newer else "make the bundle again")
        )
    digest, expected = content.pop("digest", None), _digest(content)
    try:
        manifest = msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"does not follow the schema: {error}") from error
    if digest != expected:
        raise BundleError("was changed after it was written: its digest does not match")
    return manifest, expected


class _Header(msgspec.Struct):
    format: str
    format_version: int


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


# msgspec prepares a class when it is first used, and another thread that uses it meanwhile ends
# the process (msgspec 0.22). Bundles are opened by several threads at once.
for _kind in (_Header, Manifest):
    msgspec.json.Decoder(_kind)


# Bundles


@dataclass(frozen=True)
class NewModel:
    """A model to be put into a bundle: its ONNX file or the file's content, and its network.

    Parity models that run on each slot separately are `slotwise`; a backup that is one such slot is
    `slot`. The `signature` is given if the file does not declare all of it. A deployed model that
    is elsewhere has no content.
    """

    onnx: Path | bytes
    network: str
    slotwise: bool = False
    slot: bool = False
    signature: Signature | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle: its folder, its manifest and the manifest's digest.

    The folder may be replaced or changed later. `content`, `pinned` and `code` return what was
    checked, or raise an error. `allowed` names the user's own classes that its code may use.
    """

    path: Path
    manifest: Manifest = field(repr=False)
    digest: str
    allowed: frozenset[str] = frozenset()

    @property
    def gates(self) -> Calibrations:
        """The levels of agreement that stand-ins are calibrated for, and their coverage; printed,
        also what service has taught of them."""
        manifest = self.manifest
        models = [each.sha256 for each in manifest.models.values()]
        about = msgspec.json.encode((models, manifest.code, manifest.calibration), order="sorted")
        return Calibrations(manifest.calibration, self.path, hashlib.sha256(about).hexdigest())

    @property
    def isolated(self) -> bool:
        """True if it was tested that one query cannot change another's reconstruction."""
        code = self.code()
        return code is None or (code.isolated and all(p.slotwise for p in self.manifest.parity))

    def stored(self, model: ModelFile) -> NewModel:
        """Return a model of this bundle, to be put into another."""
        path: Path | bytes = b"" if model.elsewhere else self.path / model.file
        marks = model.slotwise, model.slot
        return NewModel(path, model.network, *marks, model.signature)

    def content(self, stored: StoredFile) -> bytes:
        """Return the content of a file of this bundle. Raises BundleError if it has changed."""
        path = self.path / stored.file
        if stored.sha256 == ELSEWHERE:
            raise BundleError(f"{self.path} {IS_ELSEWHERE}")
        content = _read_file(path, MAX_MODEL_BYTES, stored.size)
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise BundleError(
                f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST}; "
                "copy the bundle again or make it anew"
            )
        return content

    def pinned(self, model: ModelFile) -> PinnedModel:
        """Return a model of this bundle, to be loaded later."""
        labels = self.manifest.labels if model.elsewhere else ()
        return PinnedModel(self.path / model.file, model.sha256, model.signature, labels)

    def envelope(self) -> Envelope | None:
        """Return the envelope of the inputs that stand-ins learned from.

        None if no stand-in was trained here. Raises BundleError if the file has changed since the
        bundle was opened.
        """
        stored = self.manifest.envelope
        if stored is None:
            return None
        content = self.content(stored)
        with _about(self.path / stored.file):
            envelope = decode_envelope(content)
            check_envelope(self.manifest, envelope)
        return envelope

    def code(self) -> Code | None:
        """Return the code, or None for a bundle without one."""
        return code_of(self.manifest, self.allowed)


def open_bundle(path: str | os.PathLike[str], allow_code: Collection[str] = ()) -> Bundle:
    """Open a bundle and check it.

    The manifest must follow its schema and match its digest; every file must have the size and hash
    that the manifest names; models must have the inputs and outputs that it names, and fit the
    code; stand-ins must answer the golden queries as they did where the bundle was made.

    Args:
        path: The bundle's folder.
        allow_code: Encoders and decoders of your own, as package.module:Class, that the bundle may
            name. No others are imported.

    Returns:
        The bundle. Its models are read when they are used, and checked again.

    Raises:
        BundleError: Naming the file and the problem, if the bundle is damaged or does not fit.

    """
    folder = Path(path)
    manifest, digest = _read_manifest(folder)
    with _about(folder / MANIFEST):
        check_fit(manifest, allow_code)
    bundle = Bundle(folder, manifest, digest, frozenset(allow_code))
    models = {}
    for role, each in manifest.models.items():
        if each.elsewhere and role == DEPLOYED:
            continue
        content, name = bundle.content(each), f"{folder / each.file}"
        try:
            models[role] = OnnxModel(content, signature=each.signature, name=name)
        except ModelError as error:
            raise BundleError(str(error)) from error
    files = {each.file: bundle.content(each) for each in manifest.files}
    bundle.envelope()
    if GOLDEN_FILE in files:
        with _about(folder / GOLDEN_FILE):
            check_golden(files[GOLDEN_FILE], models)
    return bundle


def write_bundle(
    path: str | os.PathLike[str],
    *,
    deployed: NewModel,
    parity: Sequence[NewModel] = (),
    backup: NewModel | None = None,
    envelope: Envelope | None = None,
    files: Mapping[str, bytes | Path] | None = None,
    name: str = "model",
    **recorded: Any,
) -> Bundle:
    """Write a bundle into folder `path`, whole or not at all.

    `files` are further files to keep next to the models, by name; `recorded` are further fields of
    the Manifest. Of several outputs, stand-ins imitate the only one of floating point and fixed
    shape, unless `imitated` names another. An existing bundle is replaced; any other folder that is
    not empty is refused.

    Raises:
        BundleError: For such a folder, for models that do not fit each other or the code, for
            parity models wrongly marked slotwise, and when the disk refuses.

    """
    folder = Path(path).resolve()
    check_replaceable(folder)
    if not re.fullmatch(NAME, name):
        raise BundleError(
            f"a model cannot be called {name!r}; choose up to 128 letters, digits, '.', '_' and "
            "'-', the first a letter or a digit"
        )
    new = _Contents()
    manifest = Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        deployed=new.add_model(DEPLOYED, deployed),
        parity=tuple(new.add_model(parity_role(j), model) for j, model in enumerate(parity)),
        backup=None if backup is None else new.add_model(BACKUP, backup),
        envelope=None if envelope is None else new.add(ENVELOPE, encode_envelope(envelope)),
        files=tuple(
            new.add(file, content) for file, content in (files or {}).items() if file != GOLDEN_FILE
        ),
        versions=_versions(),
        **recorded,
    )
    outputs = manifest.deployed.signature.outputs
    able = [each.name for each in outputs if each.fixed is not None and each.dtype.kind == "f"]
    if manifest.imitated is None and len(able) == 1 < len(outputs):
        manifest = msgspec.structs.replace(manifest, imitated=able[0])
    allowed = frozenset(manifest.code.own if manifest.code else ())
    with _about(folder / MANIFEST):
        decode_manifest(encode_manifest(manifest))  # follows the schema
        check_fit(manifest, allowed)
    built = code_of(manifest, allowed)
    queries = manifest.deployed.signature.smallest.input
    for j, each in enumerate(manifest.parity):
        if not (each.slotwise and built is not None and built.isolated):
            continue
        leak = find_leak(built, queries, new.models[parity_role(j)])
        if leak is not None:
            raise BundleError(
                f"{each.file} is marked slotwise, but the query in slot {leak[0]} changes the "
                f"prediction for slot {leak[1]}; leave slotwise out"
            )
    if envelope is not None:
        with _about(folder / ENVELOPE):
            check_envelope(manifest, envelope)
    if manifest.parity or manifest.backup:
        new.models.pop(DEPLOYED, None)
        found = golden(built, queries, envelope, new.models, STORED)
        stored = new.add(GOLDEN_FILE, encode_golden(found))
        manifest = msgspec.structs.replace(manifest, files=(*manifest.files, stored))
    encoded = encode_manifest(manifest)
    _replace_folder(folder, {**new.files, MANIFEST: encoded})
    return Bundle(folder, *decode_manifest(encoded), allowed)


class _Contents:
    """The `files` of a new bundle, by name, each once, and its `models`, by role.

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

    def add_model(self, role: str, model: NewModel) -> ModelFile:
        if model.onnx == b"" and model.signature is not None:
            return ModelFile(f"{role}.onnx", ELSEWHERE, 0, model.signature, model.network)
        stored = self.add(file := f"{role}.onnx", model.onnx)
        try:
            runnable = OnnxModel(self.files[file], signature=model.signature)
            check_batches(runnable)
        except ModelError as error:
            raise BundleError(f"the model for {file} cannot be used: {error}") from error
        self.models[role] = runnable
        kind = runnable.signature, model.network, model.slotwise, model.slot
        return ModelFile(stored.file, stored.sha256, stored.size, *kind)


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("parity-models", "numpy", "onnxruntime", "onnx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def with_measured(bundle: Bundle, **measured: Accuracy | Mapping[StandIn, Calibration]) -> Bundle:
    """Put an `accuracy`, or the `calibration` of stand-ins, into a bundle's manifest. Return it.

    Raises BundleError if the bundle on disk is no longer this one or cannot be written, and for
    numbers that are not finite.
    """
    if _read_manifest(bundle.path)[1] != bundle.digest:
        raise BundleError(f"{bundle.path} was replaced in the meantime; evaluate the new bundle")
    path = bundle.path / MANIFEST
    encoded = encode_manifest(msgspec.structs.replace(bundle.manifest, **measured))
    try:
        manifest, digest = decode_manifest(encoded)
    except BundleError as error:
        raise BundleError(
            f"{bundle.path} cannot hold NaN or infinite values, which its model may predict: its "
            f"{MANIFEST} {error}"
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
    """Raise BundleError if `folder` holds anything but a bundle."""
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
    path = folder / MANIFEST
    if not path.exists():
        raise BundleError(
            f"{folder} is not a bundle: it holds no {MANIFEST}; make one of an ONNX model with "
            "parm bundle, or with a stand-in with parm protect"
        )
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


def _read_file(path: Path, most: int, size: int | None = None) -> bytes:
    """Return the content of a regular file that is no link out of its folder.

    Raises BundleError for others, for another `size`, for more than `most` bytes, and if it cannot
    be read.
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

    Raises BundleError if the system refuses; the folder is then as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as aside:
            new, old = Path(aside, "new"), Path(aside, "old")
            new.mkdir()
            for file, content in contents.items():
                with (new / file).open("wb") as written:
                    written.write(content)
                    written.flush()
                    os.fsync(written.fileno())  # on the disk before the folder has its name
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


# Checks, whose errors are BundleErrors without the path

BOX = (4,)
"""The shape of a box."""

TRIED = 8
"""Groups tried for each slot, in addition to those with extreme values in it."""


def code_of(manifest: Manifest, allowed: Collection[str]) -> Code | None:
    """Return the code that the manifest names. Raises CodeError if there can be none.

    Users' own encoders and decoders are imported only if they are `allowed`, by name.
    """
    if manifest.code is None:
        return None
    for name in sorted(manifest.code.own - set(allowed)):
        raise CodeError(
            f"{name} is a class of the bundle's maker, and classes that a bundle names are not "
            f"imported by themselves; if you trust it, allow it with {spell('allow_code', [name])}"
        )
    deployed, imitated = manifest.deployed.signature, manifest.imitated_output
    output = None if imitated is None else imitated.fixed
    if output is None:
        raise CodeError(
            "stand-ins imitate one output of fixed shape, which a bundle names (`imitated`) if "
            f"the deployed model has several: {', '.join(map(str, deployed.outputs))}"
        )
    shapes = {each.name: each.shape for each in deployed.inputs}
    training = manifest.parity_training
    probabilities = training is not None and bool(training.recipe.get(PROBABILITIES))
    return Code(manifest.code, shapes, output.shape, probabilities=probabilities)


def stand_in_signature(deployed: Signature, output: Tensor, code: Code | None) -> Signature:
    """Return the signature of a backup that imitates this output, or of a parity model of `code`.

    Raises ValueError for rows that are too large.
    """
    inputs, replaced = deployed.inputs, msgspec.structs.replace
    if code is not None:
        inputs = tuple(replaced(each, shape=code.parity_shapes[each.name]) for each in inputs)
        output = replaced(output, shape=code.parity_output_shape)
    return replaced(deployed, inputs=inputs, outputs=(output,), batch=0)


def check_fit(manifest: Manifest, allowed: Collection[str]) -> None:
    """Raise BundleError unless the manifest's models fit each other and the code: see `code_of`."""
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
    if manifest.backup is not None:
        if output is None:
            raise BundleError(
                "does not name the output that its backup imitates, of "
                f"{', '.join(map(str, deployed.outputs))}; say which (`imitated`)"
            )
        needed = stand_in_signature(deployed, output, None)
        why = "a backup for the deployed model needs"
        _check_stand_in(manifest.backup, needed, why, may_have_head=True)
    for stand_in, calibration in manifest.calibration.items():
        if calibration.kind == "boxes" and (output is None or output.shape != BOX):
            raise BundleError(
                f"the gate of the {stand_in} is for boxes, of shape {list(BOX)}, but the deployed "
                f"model predicts {output}"
            )
        may = calibration.allowed.keys()
        for level in calibration.levels:
            answered = {each.number for each in level.classes}
            if not answered <= may or bool(answered) != bool(may):
                raise BundleError(f"has a gate of the {stand_in} for classes it may not answer")
        backup = manifest.backup if stand_in == BACKUP else None
        outputs = () if backup is None else backup.signature.outputs
        if calibration.confidence == "head" and HEAD not in [each.name for each in outputs]:
            raise BundleError(f"has a gate that needs a head of the {stand_in}, which is missing")


def _check_code(manifest: Manifest, code: Code, output: Tensor) -> None:
    deployed = manifest.deployed.signature
    if any(each.is_text for each in deployed.inputs):
        raise BundleError(
            f"names a code for {deployed}, and encoders compute with numbers; models of texts have "
            "backups, and no parity models"
        )
    try:
        needed = stand_in_signature(deployed, output, code)
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
    for model in manifest.parity:
        why = f"the code ({code.spec}) over the deployed model's {deployed} and {output} needs"
        _check_stand_in(model, needed, why)


def _check_stand_in(
    model: ModelFile, needed: Signature, why: str, *, may_have_head: bool = False
) -> None:
    """Raise BundleError unless the model has the signature that is needed."""
    (output,), given = needed.outputs, model.signature.outputs
    if output.fixed is None:
        raise BundleError(
            f"the output {output} that stand-ins are to imitate has no fixed shape, so that it is "
            "served exact; leave the stand-ins out, or imitate another"
        )
    outputs = [output]
    if may_have_head and HEAD in [each.name for each in given]:
        outputs = [output if each.name != HEAD else Tensor(HEAD, "FP32", (1,)) for each in given]
    _check_tensors(model.file, "input", model.signature.inputs, needed.inputs, why)
    _check_tensors(model.file, "output", given, outputs, why)
    for name, axis in model.signature.axes.items():
        if needed.axes.get(name) != axis:
            raise BundleError(f"{model.file} has other buckets along {name!r} than the model")


def _check_tensors(
    file: str, role: str, found: Sequence[Tensor], needed: Sequence[Tensor], why: str
) -> None:
    """Raise BundleError unless the needed tensors are found; a single one may have any name."""
    fits = len(found) == len(needed) and all(
        (one.datatype, one.shape) == (other.datatype, other.shape)
        and (one.name == other.name or len(needed) == 1)
        for one, other in zip(found, needed, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, needed))
        if len(needed) == 1:
            wanted = wanted.removeprefix(f"{needed[0].name!r} ")
        raise BundleError(f"{file} has {role} {', '.join(map(str, found))}, where {why} {wanted}")


def check_envelope(manifest: Manifest, envelope: Envelope) -> None:
    """Raise BundleError unless the envelope is of the deployed model's inputs and of the imitated
    output."""
    inputs, output = manifest.deployed.signature.inputs, manifest.imitated_output
    if envelope.inputs != inputs:
        found, needed = (", ".join(map(str, each)) for each in (envelope.inputs, inputs))
        raise BundleError(f"is for the inputs {found}; the deployed model's are {needed}")
    if output is None or output.shape != envelope.output_shape:
        found = str(list(envelope.output_shape))
        raise BundleError(f"is for outputs of shape {found}; the deployed model's is {output}")


def check_batches(model: OnnxModel) -> None:
    """Raise ModelError unless batches of 1 and 2 rows work, and give the declared outputs."""
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


def find_leak(code: Code, queries: Layout, model: OnnxModel) -> tuple[int, int] | None:
    """Return two slots: a query in the first changes the prediction for the second. None if no bit
    of another slot's prediction changes.

    Each slot gets usual values, zeros, and the largest numbers. The decoder reads each off alone.
    """

    def predictions(group: list[Named]) -> dict[int, Array]:
        # Of r parity models, each is tried as if it were the only one here.
        with np.errstate(over="ignore", invalid="ignore"):
            (output,) = model(renamed(code.encode(group)[0], model.signature)).values()
            return code.decode([None] * code.k, [output] + [None] * (code.r - 1))

    rng, dtype, extremes = np.random.default_rng(0), queries.dtype, list[float]()
    if not queries.is_record and dtype.kind == "f":  # integers may be indices
        most = float(np.finfo(dtype).max)
        extremes = [most, -most, 1e4]
    filled = [np.full((1, *queries.shape), each, dtype) for each in extremes]
    filled.append(queries.zeros(1))
    group = [queries.draw(rng, 1) for _ in range(code.k)]
    before = predictions(group)
    for slot in range(code.k):
        drawn = [queries.draw(rng, 1) for _ in range(TRIED)]
        for changed in [*map(queries.split, filled), *drawn]:
            after = predictions([*group[:slot], changed, *group[slot + 1 :]])
            for other in range(code.k):
                if other != slot and not np.array_equal(before[other], after[other], True):
                    return slot, other
    return None
