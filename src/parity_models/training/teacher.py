"""The deployed model that stand-ins imitate: opened as a bundle, and run as a torch module."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.errors import BundleError, DataError, ModelError, TrainingError, UserError
from parity_models.evaluation.judging import GivenInputs
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.models.export import export, floats
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import read_arrays, run_by_bucket
from parity_models.models.servable import read_servable
from parity_models.models.signature import Signature, TensorSpec
from parity_models.models.signature import Tensor as NamedTensor
from parity_models.models.weights import has_weights, load_deployed
from parity_models.training.device import BATCH, Rows

Model = Bundle | Path | str | nn.Module
"""A bundle, the path of one or of an ONNX file, or a module."""

OnPredicted = Callable[[int], None]
"""Called with the number of rows that the deployed model has just predicted."""

OWN = "own"
"""The network's name, in manifests, of a model that this package did not build."""


@dataclass(frozen=True)
class Teacher:
    """The deployed model of `bundle`, and its one `output`, of fixed shape, that stand-ins imitate.

    `plain`: queries are one float32 array of fixed shape, and there is no other output. `module` is
    the model itself, where the user gave one.
    """

    bundle: Bundle
    output: TensorSpec
    plain: bool
    module: nn.Module | None = None

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the deployed model."""
        return self.bundle.manifest.deployed.signature

    @property
    def foreign(self) -> bool:
        """Whether the weights are not in the bundle; queries may then be of any scale."""
        return not has_weights(self.bundle)

    @property
    def sha256(self) -> str:
        """The hash of the model's file."""
        return self.bundle.manifest.deployed.sha256

    def stand_in(self, datatype: str | None = None) -> Signature:
        """The signature of a stand-in for single queries, by default with the output's datatype."""
        output = NamedTensor(self.output.name, datatype or self.output.datatype, self.output.shape)
        return msgspec.structs.replace(self.signature, outputs=(output,))

    def network(self, on_predicted: OnPredicted | None = None) -> nn.Module:
        """The deployed model as a module: its network if there are weights, else in ONNX Runtime.

        Raises BundleError for weights that do not fit the network they are said to be of.
        """
        if self.module is not None:
            return deepcopy(self.module).eval()
        if self.plain and not self.foreign:
            try:
                return load_deployed(self.bundle)
            except TrainingError:  # a network that is not one of ours
                pass
        return _InOnnxRuntime(self, on_predicted)


def teacher_of(
    bundle: Bundle, output: str | None = None, module: nn.Module | None = None
) -> Teacher:
    """The deployed model of `bundle` as stand-ins learn it, by the `output` called so.

    `output` None is the one that the bundle names. Raises UserError for an output that the model
    does not have, where nothing says which of several it is, and where stand-ins that are there
    imitate another; ModelError for an output that cannot be imitated, or a model without a free
    batch axis.
    """
    bundle = _imitating(bundle, output)
    signature, chosen = bundle.manifest.deployed.signature, bundle.manifest.imitated_output
    if chosen is None:
        raise UserError(
            f"the model has the outputs {', '.join(each.name for each in signature.outputs)}; name "
            "the one that stand-ins imitate with --output NAME"
        )
    fixed = chosen.fixed
    if fixed is None or fixed.dtype.kind != "f":
        raise ModelError(
            f"the output {chosen} cannot be imitated: it has to be floating point, and of fixed "
            "shape"
        )
    if signature.batch:
        raise ModelError(
            f"the model takes {signature.batch} rows at once and no other number, so it is always "
            "served exact; export it with a free batch axis"
        )
    taken = signature.inputs[0]
    plain = (
        len(signature.inputs) == len(signature.outputs) == 1
        and taken.fixed is not None
        and taken.datatype == fixed.datatype == "FP32"
    )
    return Teacher(bundle, fixed, plain, module)


def _imitating(bundle: Bundle, output: str | None) -> Bundle:
    manifest = bundle.manifest
    if output is None or output == manifest.imitated:
        return bundle
    names = [each.name for each in manifest.deployed.signature.outputs]
    if output not in names:
        raise UserError(f"the model has no output {output!r}; it has {', '.join(names)}")
    if manifest.imitated is not None and (manifest.parity or manifest.backups):
        raise UserError(
            f"the bundle has stand-ins for the output {manifest.imitated!r}; all of a bundle "
            "imitate one, so leave --output out or begin with a bundle without stand-ins"
        )
    return replace(bundle, manifest=msgspec.structs.replace(manifest, imitated=output))


@contextmanager
def open_teacher(
    model: Model,
    inputs: GivenInputs | None = None,
    output: str | None = None,
    allow_code: Collection[str] = (),
) -> Iterator[Teacher]:
    """Open the deployed `model` for as long as the context lasts.

    A module is exported for queries like `inputs`. With inputs, which tell how large dynamic axes
    become, an ONNX file may have several inputs and outputs, of any numbers. `output` as for
    `teacher_of`, `allow_code` as for `open_bundle`. Raises BundleError or ModelError for what
    cannot be deployed.
    """
    if isinstance(model, Bundle):
        yield teacher_of(model, output)
        return
    if isinstance(model, nn.Module):
        if inputs is None or isinstance(inputs, str | Path | Mapping):
            raise UserError("give the inputs of a torch module as one array")
        content, signature = _exported(model, np.shape(inputs)[1:]), None
    else:
        path = Path(model)
        if path.is_dir():
            yield teacher_of(open_bundle(path, allow_code), output)
            return
        content, signature = _read(path, inputs)
    with TemporaryDirectory() as folder:
        try:
            bundle = write_bundle(
                Path(folder, "deployed"), deployed=NewModel(content, OWN, signature=signature)
            )
        except BundleError as error:
            raise ModelError(f"the deployed model cannot be used: {error}") from error
        yield teacher_of(bundle, output, model if isinstance(model, nn.Module) else None)


def _read(path: Path, inputs: GivenInputs | None) -> tuple[bytes, Signature]:
    if inputs is None or (isinstance(inputs, str | Path) and Path(inputs).is_dir()):
        return read_servable(path)
    if isinstance(inputs, str | Path):
        queries = read_arrays(Path(inputs))
    else:
        named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        queries = {name: np.asarray(each) for name, each in named.items()}
    if any(not each.size for each in queries.values()):
        return read_servable(path)  # too few queries are refused by those who count them
    return read_servable(path, queries=queries)


def _exported(module: nn.Module, query_shape: tuple[int, ...]) -> bytes:
    try:
        content = export(module, [floats(query_shape)])
    except Exception as error:  # the user's module and the exporter may raise anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the module cannot be exported to ONNX for queries of shape {query_shape}: {why}"
        ) from error
    try:
        OnnxModel(content)
    except ModelError as error:
        raise ModelError(f"the module cannot be deployed: {error}") from error
    return content


class _InOnnxRuntime(nn.Module):
    """One output of a deployed model in ONNX Runtime, each query run at its own size.

    It can predict, but has no weights to start from.
    """

    def __init__(self, teacher: Teacher, on_predicted: OnPredicted | None) -> None:
        super().__init__()
        self._model = OnnxModel(
            teacher.bundle.deployed_path,
            signature=teacher.signature,
            threads=torch.get_num_threads(),
        )
        self._teacher = teacher
        self._on_predicted = on_predicted

    def forward(self, *tensors: Tensor) -> Tensor:
        """The inputs' tensors (n, ...), in their order, to (n, *output_shape), on their device.

        Raises DataError for queries that it cannot run, and for predictions that are not finite:
        nothing can be learned from those.
        """
        outputs = self._run(tensors)
        if not np.isfinite(outputs).all():
            raise DataError(
                "the deployed model predicts NaN or infinite values for some of the inputs; "
                "leave those out, or check that inputs are scaled as the model expects them"
            )
        return torch.from_numpy(outputs.astype(np.float32, copy=False)).to(tensors[0].device)

    def _run(self, tensors: tuple[Tensor, ...]) -> NDArray[Any]:
        signature = self._teacher.signature
        arrays = Rows(tensors).arrays(signature)
        name = self._teacher.output.name
        return run_by_bucket(
            self._model.predict, arrays, signature, name, BATCH, self._on_predicted
        )
