"""The deployed model that stand-ins imitate, and the queries that they learn from."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from parity_models.bundle.bundle import (
    Bundle,
    NewModel,
    open_bundle,
    stand_in_signature,
    write_bundle,
)
from parity_models.bundle.servable import OWN, read_servable, with_mean
from parity_models.codes import Code
from parity_models.errors import BundleError, ModelError, TrainingError, UserError, spell
from parity_models.evaluation.judging import GivenInputs, load_queries
from parity_models.evaluation.outputs import deployed_predictor
from parity_models.options import Options, option
from parity_models.progress import OnProgress, Progress
from parity_models.tasks.metrics import METRICS, Labels, choose_metric
from parity_models.tensors.queries import as_batch, read_arrays, sizes_in
from parity_models.tensors.signature import Array, Signature, TensorSpec, pack, padded, tensors_in
from parity_models.tensors.signature import Tensor as NamedTensor
from parity_models.training.device import Rows
from parity_models.training.export import WEIGHTS, export, floats, load_deployed
from parity_models.training.networks.queried import Queried, describe

Model = Bundle | Path | str | nn.Module
"""A bundle, the path of one or of an ONNX file, or a module."""

HELD_OUT = 10
"""One in HELD_OUT of the user's inputs is held out for each purpose."""


@dataclass(frozen=True)
class Teacher:
    """The deployed model of `bundle`, and its one `output`, of fixed shape, that stand-ins imitate.

    `plain`: queries are one float32 array of fixed shape, and there is no other output. `module` is
    the model itself, if the user gave one.
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
        """True if the weights are not in the bundle; queries may then be of any scale."""
        return WEIGHTS not in self.bundle.manifest.stored

    def stand_in(self, code: Code | None = None, datatype: str | None = None) -> Signature:
        """Return the signature of a stand-in, for single queries or parity queries of a code, by
        default with the output's datatype."""
        output = NamedTensor(self.output.name, datatype or self.output.datatype, self.output.shape)
        return stand_in_signature(self.signature, output, code)

    def describe(self, rows: Array) -> Queried:
        """Describe the inputs, by `rows` of queries and the model's graph unless it is `plain`."""
        deployed = self.bundle.manifest.deployed
        content = b"" if self.plain or deployed.elsewhere else self.bundle.content(deployed)
        return describe(as_batch(rows, self.signature), self.signature, content)

    def network(self, on_progress: OnProgress | None = None) -> nn.Module:
        """Return the deployed model as a module: its network if there are weights, else in ONNX
        Runtime.

        Raises BundleError for weights that do not fit their network.
        """
        if self.module is not None:
            return deepcopy(self.module).eval()
        if self.plain and not self.foreign:
            try:
                return load_deployed(self.bundle)
            except TrainingError:  # a network that is not one of ours
                pass
        return _InOnnxRuntime(self, on_progress)


class _InOnnxRuntime(nn.Module):
    """One output of a deployed model in ONNX Runtime, each query run at its own size.

    It can predict, but has no weights to start from.
    """

    def __init__(self, teacher: Teacher, on_progress: OnProgress | None) -> None:
        super().__init__()
        self._run = deployed_predictor(teacher.bundle, on_rows=self._on_rows)
        self._signature = teacher.signature
        self._on_progress = on_progress
        self._predicted = 0

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map the inputs' tensors (n, ...), in their order, to (n, *output_shape), on their device.

        Raises DataError for queries that it cannot run.
        """
        outputs = self._run(Rows(tensors).arrays(self._signature))
        return torch.from_numpy(outputs.astype(np.float32, copy=False)).to(tensors[0].device)

    def _on_rows(self, rows: int) -> None:
        self._predicted += rows
        if self._on_progress is not None:
            self._on_progress(Progress("the model's predictions", self._predicted))


def teacher_of(
    bundle: Bundle, output: str | None = None, module: nn.Module | None = None
) -> Teacher:
    """Return the deployed model of `bundle` as stand-ins learn it, by the output named `output`.

    By default that is the one that the bundle names. Raises UserError for an output that the model
    lacks, if nothing tells which of several it is, and if existing stand-ins imitate another;
    ModelError for an output that cannot be imitated.
    """
    manifest, signature = bundle.manifest, bundle.manifest.deployed.signature
    names = ", ".join(each.name for each in signature.outputs)
    if output is not None and output != manifest.imitated:
        if output not in [each.name for each in signature.outputs]:
            raise UserError(f"the model has no output {output!r}; it has {names}")
        if manifest.imitated is not None and (manifest.parity or manifest.backup):
            raise UserError(
                f"the bundle has stand-ins for the output {manifest.imitated!r}, and all imitate "
                f"one output; leave {spell('output')} out or begin with a bundle without stand-ins"
            )
        manifest = msgspec.structs.replace(manifest, imitated=output)
        bundle = replace(bundle, manifest=manifest)
    chosen = manifest.imitated_output
    if chosen is None:
        raise UserError(
            f"the model has the outputs {names}; name the one that stand-ins imitate with "
            f"{spell('output')}"
        )
    fixed = chosen.fixed
    if fixed is None or fixed.dtype.kind != "f":
        raise ModelError(
            f"the output {chosen} cannot be imitated: it has to be floating point, and of fixed "
            f"shape; if it has a row for each token, imitate their mean ({spell('pool', 'mean')})"
        )
    taken = signature.inputs[0]
    plain = (
        len(signature.inputs) == len(signature.outputs) == 1
        and taken.fixed is not None
        and taken.datatype == fixed.datatype == "FP32"
    )
    return Teacher(bundle, fixed, plain, module)


@contextmanager
def open_teacher(
    model: Model,
    inputs: GivenInputs | None = None,
    output: str | None = None,
    pool: str | None = None,
) -> Iterator[Teacher]:
    """Open the deployed `model` for as long as the context lasts.

    A module is exported for queries like `inputs`. With inputs, which tell how large dynamic axes
    become, an ONNX file may have several inputs and outputs, of any numeric type. `output` is as
    for `teacher_of`; with `pool` it is the scaled mean of that output (see `with_mean`), which is
    served, too. Raises BundleError or ModelError if the model cannot be deployed.
    """
    if pool not in (None, "mean"):
        raise UserError(f"{spell('pool')} takes mean, not {pool!r}")
    if pool is not None and (isinstance(model, Bundle | nn.Module) or Path(model).is_dir()):
        raise UserError(f"{spell('pool')} changes the model that is served; give an ONNX file")
    if not isinstance(model, Bundle | nn.Module) and Path(model).is_dir():
        model = open_bundle(model)
    if isinstance(model, Bundle):
        yield teacher_of(model, output)
        return
    queries = None if inputs is None else _arrays(inputs)
    module = model if isinstance(model, nn.Module) else None
    if isinstance(model, nn.Module):
        if inputs is None or isinstance(inputs, str | Path | Mapping):
            raise UserError("give the inputs of a torch module as one array")
        content, signature = read_servable(_exported(model, np.shape(inputs)[1:]), queries=queries)
    else:
        content, signature = read_servable(Path(model), queries=queries)
    if pool is not None:
        content, signature, output = with_mean(content, signature, output)
    with TemporaryDirectory() as folder:
        deployed = NewModel(content, OWN, signature=signature)
        try:
            bundle = write_bundle(Path(folder, "deployed"), deployed=deployed)
        except BundleError as error:
            raise ModelError(f"the deployed model cannot be used: {error}") from error
        yield teacher_of(bundle, output, module)


def _arrays(inputs: GivenInputs) -> dict[str, Array] | None:
    """Return the inputs if these tell how large dynamic axes become."""
    if isinstance(inputs, str | Path):
        queries = read_arrays(Path(inputs))
    else:
        named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        queries = {name: np.asarray(each) for name, each in named.items()}
    # Callers that count queries refuse too few.
    return queries if all(each.size for each in queries.values()) else None


def _exported(module: nn.Module, query_shape: tuple[int, ...]) -> bytes:
    try:
        return export(module, [floats(query_shape)])
    except Exception as error:  # the user's module and the exporter may raise anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the module cannot be exported to ONNX for queries of shape {query_shape}: {why}"
        ) from error


# Queries


@dataclass(frozen=True, kw_only=True)
class TeachingOptions(Options):
    """Options of the output that stand-ins learn, of its metric, and of training."""

    output: str | None = option(
        None, "The output that stand-ins imitate; by default the bundle's.", metavar="OUTPUT"
    )
    metric: str | None = option(
        None,
        f"The measure of accuracy: {', '.join(METRICS)}; by default chosen by the outputs.",
        metavar="NAME",
    )
    hflip: bool = option(False, "Train on queries flipped horizontally as well.")
    seed: int = option(0, "Fixes initial weights and order of data.", ge=0, le=2**32 - 1)
    device: str | None = option(
        None, "The device that trains: cpu, cuda, cuda:1, mps. By default the fastest."
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TeachingOptions):
    """The options of training one stand-in.

    Training ends after `epochs` or `seconds`, whichever comes first; with neither, after the
    recipe's number of epochs. On one device the same `seed` gives the same weights, unless a time
    limit intervenes.
    """

    epochs: int | None = option(
        None, "Maximum number of passes over the data; the default depends on the network.", ge=1
    )
    seconds: float | None = option(None, "Maximum training time.", unit="s", gt=0)
    resume: bool = option(False, "Continue a run that was cut off.")


@dataclass(frozen=True)
class Queries:
    """Queries to learn from, and others that choose the best epoch, calibrate gates and test.

    They are (n, *query_shape), or rows of one kind of the model's signature; there may be none for
    calibration and tests. Without labels the deployed model's predictions count as right. `metric`
    None is the one that suits the predictions. With `hflip`, queries turned left to right count as
    well.
    """

    train: Array
    validation: Array
    validation_labels: Labels | None = None
    calibration: Array | None = None
    test: Array | None = None
    metric: str | None = None
    hflip: bool = False

    @classmethod
    def of(cls, inputs: Array, k: int = 1, **fields: Any) -> "Queries":
        """Hold out k or more of the `inputs` for validation, none for calibration or tests."""
        order = np.random.default_rng(0).permutation(len(inputs))
        rest, drawn = np.split(order, [len(inputs) - max(k, len(inputs) // HELD_OUT)])
        return cls(inputs[rest], inputs[drawn], **fields)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the queries to learn from."""
        content = hashlib.sha256()
        for each in tensors_in(self.train):
            content.update(pack(each))
        return content.hexdigest()


def find_queries(
    teacher: Teacher, inputs: GivenInputs, options: TeachingOptions, *, k: int = 1, least: int = 1
) -> Queries:
    """Return the user's `inputs`, a tenth each held out for validation, calibration and tests.

    Raises DataError if they are fewer than `least` or too few for groups of k, and UserError for
    options that do not fit.
    """
    if options.hflip and not teacher.plain:
        raise UserError("hflip is for images; the model takes other queries")
    choose_metric(options.metric, teacher.output.shape)
    for each in teacher.signature.inputs:
        if each.is_text:
            raise TrainingError(
                f"the input {each.name!r} holds texts, and the networks that are trained here take "
                "numbers"
            )
    found = rows_of(teacher, inputs, least=max(least, 3 * k))
    order = np.random.default_rng(1).permutation(len(found))
    tenth = len(found) // HELD_OUT
    tested = max(k, tenth)
    rest, calibrated, test = np.split(order, [len(found) - tested - tenth, len(found) - tested])
    held_out = {"calibration": found[calibrated], "test": found[test]}
    return Queries.of(found[rest], k, metric=options.metric, hflip=options.hflip, **held_out)


def rows_of(teacher: Teacher, inputs: GivenInputs, least: int) -> Array:
    """Return queries as rows of one kind: unequal lengths are padded to one."""
    batch, signature = load_queries(inputs, teacher.bundle, least), teacher.signature
    sizes = sizes_in(batch, signature.inputs)
    return padded(batch, signature, [int(sizes[axis].max()) for axis in signature.axes])
