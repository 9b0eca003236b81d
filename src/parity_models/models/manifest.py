"""The manifest of a bundle: its schema, and the JSON it is kept in.

Besides the fields of Manifest, the JSON object holds a `digest` over all of them, so that a
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
from parity_models.models.tensor import TensorSpec
from parity_models.roles import BACKUPS, Backup

FORMAT: Final = "parity-models-bundle"
FORMAT_VERSION: Final = 3

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""A file directly in the bundle's folder: no separators, so no way out of it."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
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

    @property
    def input(self) -> TensorSpec:
        """The only input. Raises ModelError for a model with several, or a dynamic one."""
        return self.signature.input

    @property
    def output(self) -> TensorSpec:
        """The only output. Raises ModelError for a model with several, or a dynamic one."""
        return self.signature.output


class ParityFile(ModelFile, frozen=True, forbid_unknown_fields=True):
    """The ONNX file of a parity model; `slotwise`: it runs on each slot of its input by itself."""

    slotwise: bool = False


class BackupFile(ModelFile, frozen=True, forbid_unknown_fields=True):
    """The ONNX file of a backup; `slot`: it is one slot of the first parity model, by itself."""

    slot: bool = False


class EnvelopeFile(StoredFile, frozen=True, forbid_unknown_fields=True):
    """The file of the envelope of inputs that stand-ins learned from.

    `false_alarms` is the share of `held_out` honest inputs that it calls unlike those.
    """

    false_alarms: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    held_out: Count


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracies on the whole test set of the bundle's task.

    `available_accuracy` is A_a; `degraded_accuracy` A_d, of reconstructions alone, and
    `degraded_by_slot` the same for each of the k slots; `overall` is A_o by the fraction of
    predictions that is unavailable, as text ("0.1"); `agreement` the share of reconstructions
    that say the same as the deployed model. `degraded_by_unavailable` is A_d with 1 to r of a
    group's predictions unavailable at once. `backup_accuracies` are those of each
    backup alone. All are values of `metric`, at most 1 (and not below 0 unless it is
    R²), over `queries` queries. Without a code there are only A_a and the number of queries.
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
    def batches_pay(self) -> bool:
        """Whether the deployed model runs a BATCH in the time of two queries, or less.

        Then the queries of one have their answers sooner, on average, than one after the other.
        """
        return self.deployed_batch is not None and self.deployed_batch <= 2 * self.deployed

    @property
    def batch(self) -> int:
        """The default number of queries that run at once: a BATCH where that pays."""
        return BATCH if self.batches_pay else 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a bundle: the deployed model, its code and one parity model per row of it, and
    perhaps backups, cheaper networks for the same queries, the fastest first.

    `name` is the name under which the model is served. Without a code there are no parity
    models. `imitated` is the output of the deployed model that stand-ins give; None: its only one.
    `coders` are the networks of a learned encoder and decoder. `envelope` is there if a stand-in
    was trained here. `calibration` says where stand-ins may answer, if it was measured. `files` are
    further files kept beside the models. `versions` names the software that made the bundle.
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
    def imitated_output(self) -> Tensor | None:
        """The output of the deployed model that stand-ins give; None where that is not said."""
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


def decode_manifest(text: bytes) -> Manifest:
    """Return the manifest in `text`. Raises BundleError, without the path, if it is unsound."""
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
    digest = content.pop("digest", None)
    expected = _digest(content)
    try:
        manifest = msgspec.convert(_upgraded(content, header.format_version), Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"does not follow the schema: {error}") from error
    if manifest.code is not None:
        unknown = content["code"].keys() - {field.name for field in fields(CodeSpec)}
        if unknown:
            raise BundleError(
                f"does not follow the schema: Object contains unknown field "
                f"`{min(unknown)}` - at `$.code`"
            )
    if digest != expected:
        raise BundleError("was changed after it was written: its digest does not match")
    return manifest


def digest_of(text: bytes) -> str:
    """Return the digest of a manifest that could be decoded: 64 hexadecimal digits."""
    return msgspec.json.decode(text, type=_Digest).digest


def _upgraded(content: dict[str, Any], version: int) -> dict[str, Any]:
    """The content of a manifest as the newest format has it.

    In format 2 there is one backup, or none. In format 1, a model also has an `input` and an
    `output` in place of a signature.
    """
    if version in (1, 2):
        content = _with_backups(dict(content, format_version=FORMAT_VERSION))
    if version != 1:
        return content
    content["deployed"] = _with_signature(content.get("deployed"))
    content["backups"] = [_with_signature(each) for each in content["backups"]]
    parity, coders = content.get("parity"), content.get("coders")
    if isinstance(parity, list):
        content["parity"] = [_with_signature(each) for each in parity]
    if isinstance(coders, dict):
        content["coders"] = {name: _with_signature(each) for name, each in coders.items()}
    return content


def _with_backups(content: dict[str, Any]) -> dict[str, Any]:
    """Lists in place of what is said of one backup."""
    renamed = {"backup": "backups", "backup_training": "backup_trainings"}
    content = _listed(content, renamed)
    for part, names in (
        ("accuracy", {"backup_accuracy": "backup_accuracies"}),
        ("inference_times", {"backup": "backups"}),
    ):
        if isinstance(content.get(part), dict):
            content[part] = _listed(content[part], names)
    return content


def _listed(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The content with a list, of one or none, under another name for each of these `names`."""
    found = {name: value for name, value in content.items() if name not in names}
    for name, many in names.items():
        found[many] = [] if content.get(name) is None else [content[name]]
    return found


def _with_signature(model: Any) -> Any:
    if not isinstance(model, dict) or not {"input", "output"} <= model.keys():
        return model
    rest = {name: value for name, value in model.items() if name not in ("input", "output")}
    return {**rest, "signature": {"inputs": [model["input"]], "outputs": [model["output"]]}}


class _Digest(msgspec.Struct):
    digest: str


class _Header(msgspec.Struct):
    format: str
    format_version: int


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


# msgspec prepares a class when it is first used, and another thread that uses it meanwhile ends
# the process (msgspec 0.22). Bundles are opened by several threads at once.
for _kind in (_Header, _Digest, Manifest):
    msgspec.json.Decoder(_kind)
