"""A bundle's models as a repository that Triton loads as it is.

Parity model j is called NAME-parity-j, as the remote engine expects by default.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from parity_models.bundle.bundle import Bundle, ModelFile, open_bundle
from parity_models.errors import UserError
from parity_models.roles import DEPLOYED
from parity_models.tensors.features import HASHED_TEXT
from parity_models.tensors.signature import Tensor

MAX_BATCH = 64
"""Rows that Triton takes at once."""


def export_repository(
    bundle: Bundle | Path | str, out: Path | str, name: str | None = None
) -> None:
    """Write a bundle's models as a repository that Triton loads as it is.

    Args:
        bundle: The bundle, or its folder.
        out: The repository, a new folder.
        name: The deployed model's name, by default the bundle's; the parity models and the backup
            are called after it.

    Raises:
        UserError: The folder cannot be written, or Triton cannot hold the models; nothing is left
            behind.
    """
    bundle, out = bundle if isinstance(bundle, Bundle) else open_bundle(bundle), Path(out)
    name = bundle.manifest.name if name is None else name
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"a model cannot be called {name!r}; leave out slashes and a dot in front")
    files = bundle.manifest.models.items()
    if any(file.elsewhere or file.network == HASHED_TEXT for _, file in files):
        raise UserError(
            f"{bundle.path} has a model that runs elsewhere, or a backup that reads texts as only "
            "this package does; serve the backup with parm serve --stand-in-only"
        )
    models = {name if role == DEPLOYED else f"{name}-{role}": file for role, file in files}
    for model in models.values():
        tensors = (*model.signature.inputs, *model.signature.outputs)
        if not all(each.shape for each in tensors):
            raise UserError(
                "Triton's models have rows of one axis or more; this one has single values"
            )
    try:
        if out.exists():
            raise UserError(f"{out} exists already; choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True
        ) as temporary:
            new = Path(temporary, "new")
            for model_name, model in models.items():
                (new / model_name).mkdir(parents=True)
                _write_model(new / model_name, model_name, model, bundle.path / model.file)
            new.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error


def _write_model(folder: Path, name: str, model: ModelFile, path: Path) -> None:
    batch = model.signature.batch

    def all_of(tensors: Sequence[Tensor]) -> str:
        texts = []
        for each in tensors:
            row = [-1 if isinstance(size, str) else size for size in each.shape]  # -1: any size
            datatype = "STRING" if each.is_text else each.datatype
            named = f"name: {json.dumps(each.name)} data_type: TYPE_{datatype}"
            texts.append(f"{{ {named} dims: {[batch, *row] if batch else row} }}")
        return ", ".join(texts)

    (folder / "1").mkdir()
    shutil.copyfile(path, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(
        f"name: {json.dumps(name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {0 if batch else MAX_BATCH}\n"
        f"input [ {all_of(model.signature.inputs)} ]\n"
        f"output [ {all_of(model.signature.outputs)} ]\n"
        # As many units at once as the remote engine sends by default.
        "instance_group [ { count: 1 } ]\n"
        # A version replaces another only on request, not because it is newer.
        "version_policy { all { } }\n"
    )
