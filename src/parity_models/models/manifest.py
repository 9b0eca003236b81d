"""The manifest of a bundle: its schema, and the JSON file that holds it.

Next to the fields of Manifest, the JSON object holds a `digest` over all of them, so that a
changed manifest is noticed as surely as a changed model file.
"""

import hashlib
from dataclasses import fields
from typing import Annotated, Any, Final, Literal

import msgspec

from parity_models.codes import CoderKind, CodeSpec
from parity_models.errors import BundleError
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.signature import Signature, Tensor
from parity_models.roles import BACKUPS, Backup

FORMAT: Final = "parity-models-bundle"
FORMAT_VERSION: Final = 3

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
FileName = Annotated[str, msgspec.Meta(pattern=NAME)]
"""A file directly in the bundle's folder: no separators, so no way out of it."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ModelName = Annotated[str, msgspec.Meta(pattern=NAME)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0.0)]
Score = Annotated[float, msgspec.Meta(le=1.0)]


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in the bundle's folder, with its size in bytes."""

    file: FileName
    sha256: Sha256
    size: Count


class ModelFile(StoredFile, frozen=True, forbid_unknown_fields=True):
    """An ONNX file in the bundle's folder and what its inputs and outputs look like.

    `network` is the name of its architecture, for people.
    """

    signature: Signature
    network: str


class ParityFile(ModelFile, frozen=True, forbid_unknown_fields=True):
    """The ONNX file of a parity model; `slotwise`: it runs on each slot of its input separately."""

    slotwise: bool = False


class BackupFile(ModelFile, frozen=True, forbid_unknown_fields=True):
    """The ONNX file of a backup; `slot`: it is one slot of the first parity model."""

    slot: bool = False


class EnvelopeFile(StoredFile, frozen=True, forbid_unknown_fields=True):
    """The file of the envelope of inputs that stand-ins learned from.

    `false_alarms` is the share of `held_out` honest inputs that it rejects.
    """

    false_alarms: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    held_out: Count


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracies on the whole test set of the bundle's task: values of `metric` over `queries`.

    `available_accuracy` is A_a; `degraded_accuracy` A_d, of reconstructions alone, and
    `degraded_by_slot` A_d of each of the k slots; `overall` is A_o by the fraction of predictions
    that is unavailable, as text ("0.1"); `agreement` the share of reconstructions that agree with
    the deployed model. `degraded_by_unavailable` is A_d with 1 to r of a group's predictions
    unavailable at once. `backup_accuracies` are those of each backup. Without a code there are
    only A_a and the number of queries.
    """

    metric: str
    available_accuracy: Score
    degraded_accuracy: Score | None
    degraded_by_slot: tuple[Score, ...]
    overall: dict[str, Score]
    agreement: Score | None
    queries: Count
    degraded_by_unavailable: tuple[Score, ...] = ()
    backup_accuracies: tuple[Score, ...] = ()


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
"""Queries in a batch whose time is measured as well as that of one."""


class InferenceTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Median milliseconds for a batch of one on one thread, where the bundle was made.

    All parity models have one network, so one time; `deployed_batch` is that of the deployed model
    for a BATCH. Ratios mean more than the times.
    """

    deployed: Milliseconds
    parity: Milliseconds | None
    backups: tuple[Milliseconds, ...] = ()
    deployed_batch: Milliseconds | None = None

    @property
    def of_backups(self) -> dict[str, float]:
        """The times of the backups, by their roles."""
        return dict(zip(BACKUPS, self.backups, strict=False))

    @property
    def batch(self) -> int:
        """The default number of queries that run at once.

        It is a BATCH if the deployed model runs one in the time of two queries, or less: then
        queries have their answers sooner, on average, than one after the other.
        """
        pays = self.deployed_batch is not None and self.deployed_batch <= 2 * self.deployed
        return BATCH if pays else 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a bundle: the deployed model, its code and one parity model per row of it, and
    backups, cheaper networks for the same queries, the fastest first.

    `name` is the name under which the model is served. `imitated` is the output of the deployed
    model that stand-ins give; None: its only one. `coders` are the networks of a learned encoder
    and decoder. `envelope` is there if a stand-in was trained here. `calibration` holds the gates
    of stand-ins, if they were measured. `versions` names the software that made the bundle.
    """

    format: Literal["parity-models-bundle"] = FORMAT
    format_version: Literal[3] = FORMAT_VERSION
    name: ModelName = "model"
    created: str
    deployed: ModelFile
    imitated: str | None = None
    code: CodeSpec | None = None
    parity: tuple[ParityFile, ...] = ()
    coders: dict[CoderKind, ModelFile] = {}
    backups: Annotated[tuple[BackupFile, ...], msgspec.Meta(max_length=len(BACKUPS))] = ()
    envelope: EnvelopeFile | None = None
    files: tuple[StoredFile, ...] = ()
    deployed_training: Training | None = None
    parity_training: Training | None = None
    backup_trainings: tuple[Training | None, ...] = ()
    accuracy: Accuracy | None = None
    inference_times: InferenceTimes | None = None
    calibration: dict[StandIn, Calibration] = {}
    versions: dict[str, str]

    @property
    def task(self) -> str:
        """The task that the deployed model was trained on here; `own` for those from elsewhere."""
        return "own" if self.deployed_training is None else self.deployed_training.task

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """All ONNX files."""
        return (self.deployed, *self.parity, *self.coders.values(), *self.backups)

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

    @property
    def backup_roles(self) -> dict[Backup, BackupFile]:
        """The backups by their roles, which are the sources of their answers as well."""
        return dict(zip(BACKUPS, self.backups, strict=False))


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
        raise BundleError(f"is damaged or not a bundle's manifest: {error}") from error
    if header.format != FORMAT:
        raise BundleError(f"has format {header.format!r}, not {FORMAT!r}: this is another file")
    if header.format_version > FORMAT_VERSION:
        raise BundleError(
            f"has format version {header.format_version}, this software reads up to "
            f"{FORMAT_VERSION}; install a newer parity-models"
        )
    digest, expected = content.pop("digest", None), _digest(content)
    code = content.get("code")
    try:
        _upgrade(content, header.format_version)
        manifest = msgspec.convert(content, Manifest)
        # msgspec ignores unknown fields of a dataclass.
        for name in code.keys() - {each.name for each in fields(CodeSpec)} if code else ():
            raise msgspec.ValidationError(f"Object contains unknown field `{name}` - at `$.code`")
    except msgspec.ValidationError as error:
        raise BundleError(f"does not follow the schema: {error}") from error
    if digest != expected:
        raise BundleError("was changed after it was written: its digest does not match")
    return manifest, expected


def _upgrade(content: dict[str, Any], version: int) -> None:
    """Bring the content of a manifest to the newest format.

    In format 2 there is one backup, or none. In format 1, a model also has an `input` and an
    `output` in place of a signature.
    """
    if version not in (1, 2):
        return
    content["format_version"] = FORMAT_VERSION
    for part, one, many in (
        (content, "backup", "backups"),
        (content, "backup_training", "backup_trainings"),
        (content.get("accuracy"), "backup_accuracy", "backup_accuracies"),
        (content.get("inference_times"), "backup", "backups"),
    ):
        if isinstance(part, dict):
            value = part.pop(one, None)
            part[many] = [] if value is None else [value]
    if version == 2:
        return
    parity, coders = content.get("parity"), content.get("coders")
    models = [content.get("deployed"), *content["backups"]]
    models += parity if isinstance(parity, list) else []
    models += coders.values() if isinstance(coders, dict) else []
    for model in models:
        if isinstance(model, dict) and {"input", "output"} <= model.keys():
            model["signature"] = {f"{role}s": [model.pop(role)] for role in ("input", "output")}


class _Header(msgspec.Struct):
    format: str
    format_version: int


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


# msgspec prepares a class when it is first used, and another thread that uses it meanwhile ends
# the process (msgspec 0.22). Bundles are opened by several threads at once.
for _kind in (_Header, Manifest):
    msgspec.json.Decoder(_kind)
