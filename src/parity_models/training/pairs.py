"""Training a backup on pairs of queries and answers, a log's or a model's for texts."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity_models.bundle.bundle import Bundle, NewModel, Training, write_bundle
from parity_models.bundle.inference_time import measure_models
from parity_models.errors import DataError, TrainingError
from parity_models.evaluation.judging import (
    GivenInputs,
    answered_classes,
    calibrate_gates,
    judge,
    load_queries,
)
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.progress import Callbacks
from parity_models.tasks.metrics import USUAL, choose_metric, recognise
from parity_models.tensors.pairs import Pairs
from parity_models.tensors.queries import rows_in, take
from parity_models.tensors.signature import Array, Batch, Signature, padded
from parity_models.tensors.texts import write_texts
from parity_models.training.candidates import Exported, TrainingContext
from parity_models.training.device import Rows, choose_device, place
from parity_models.training.distillation import distill
from parity_models.training.search import propose, search
from parity_models.training.teacher import HELD_OUT, Queries, Teacher, TeachingOptions, teacher_of
from parity_models.training.texts import fit_texts
from parity_models.trust.envelope import fit_envelope
from parity_models.trust.gate import AGREEMENT

FEWEST = 20
"""The fewest distinct queries to learn from."""

CALIBRATING = 10_000
"""The most queries that gates are calibrated with."""


@dataclass(frozen=True)
class Lesson:
    """Queries, n by input, and the model's outputs (n, *output shape) for them.

    If they are in the `order` of time, the newest are for calibration; else some drawn at random.
    `deployed` are the fields of the bundle about the model.
    """

    queries: Batch
    predictions: Array
    order: bool
    deployed: Mapping[str, Any]

    @classmethod
    def of(cls, pairs: Pairs) -> "Lesson":
        """Return the lesson of a log, whose model is elsewhere."""
        model = NewModel(b"", "elsewhere", signature=pairs.signature)
        deployed = {"deployed": model, "labels": pairs.labels}
        return cls(pairs.inputs, pairs.predictions(pairs.labels), pairs.times, deployed)

    @classmethod
    def of_model(cls, teacher: Teacher, inputs: GivenInputs) -> "Lesson":
        """Return the lesson of a model that takes texts, and gives its outputs for `inputs`."""
        bundle = teacher.bundle
        queries = load_queries(inputs, bundle, FEWEST)
        if len(queries) > 1:
            raise TrainingError("a stand-in takes one text; this model takes further inputs")
        manifest = bundle.manifest
        deployed = {"deployed": bundle.stored(manifest.deployed), "imitated": manifest.imitated}
        return cls(queries, deployed_predictor(bundle)(queries), False, deployed)


def learn(
    lesson: Lesson,
    out: Path,
    options: TeachingOptions,
    *,
    seconds: float,
    callbacks: Callbacks,
    level: float | None = None,
    answer_only: str | None = None,
) -> Bundle:
    """Train a backup for this many seconds, calibrate it, and write a bundle with it.

    A tenth of the queries calibrates its gate, at `level` as well, and measures its agreement.

    Raises:
        DataError: There are fewer than FEWEST queries.
        UserError: A metric cannot judge the answers, or there is no such class.
        TrainingError: No network can learn them.
    """
    count = len(lesson.predictions)
    if count < FEWEST:
        raise DataError(f"there are {count} distinct queries, too few: give {FEWEST} or more")
    rng = np.random.default_rng(0)
    order = np.arange(count) if lesson.order else rng.permutation(count)
    learned, held = np.split(order, [count - min(CALIBRATING, count // HELD_OUT)])
    queries, calibrating = take(lesson.queries, learned), take(lesson.queries, held)
    targets = lesson.predictions[learned]
    kind = recognise(targets, options.metric)
    metric = choose_metric(options.metric or USUAL[kind], targets.shape[1:])
    contents = dict(lesson.deployed)
    with TemporaryDirectory() as folder:
        bare = write_bundle(Path(folder, "bare"), **contents)
        teacher = teacher_of(bare, options.output)
        contents["imitated"] = teacher.bundle.manifest.imitated
        only = answered_classes(bare, answer_only)
        if any(each.is_text for each in teacher.signature.inputs):
            made = _read_texts(teacher, queries, targets, metric, options, seconds, callbacks)
        else:
            answers = _Answers(queries, targets, teacher.signature)
            teacher, level_ = replace(teacher, module=answers), level or AGREEMENT
            made = _searched(teacher, queries, metric, level_, options, seconds, callbacks)
        contents |= {"backup": made.backup, "backup_training": made.backup_training}
        if not bare.manifest.deployed.elsewhere:
            contents["inference_times"] = measure_models(contents["deployed"], (), made.backup)
        contents["envelope"] = fit_envelope(teacher.signature.inputs, queries, calibrating, targets)
        draft = write_bundle(Path(folder, "draft"), **contents)
        outputs = Outputs(draft, calibrating, predictions=lesson.predictions[held])
        named = [] if level is None else [level]
        gates = calibrate_gates(outputs, metric=metric, named=named, allowed=only)
        accuracy = judge(outputs, None, metric, gates).accuracy
    return write_bundle(out, **contents, calibration=gates, accuracy=accuracy)


def _read_texts(
    teacher: Teacher,
    queries: Batch,
    targets: Array,
    metric: str,
    options: TeachingOptions,
    seconds: float,
    callbacks: Callbacks,
) -> Exported:
    """Train a backup that reads the only input, a text."""
    began = time.monotonic()
    (texts,) = (each.ravel().tolist() for each in queries.values())
    kind = recognise(targets, metric)
    backup = fit_texts(
        texts,
        targets.astype(np.float32),
        kind,
        teacher.stand_in(),
        end=began + seconds,
        on_progress=callbacks.on_progress,
    )
    training = Training(
        task="own",
        inputs=len(texts),
        inputs_sha256=hashlib.sha256(write_texts(np.array(texts, object))).hexdigest(),
        seed=options.seed,
        epochs=1,
        seconds=round(time.monotonic() - began, 2),
        device="cpu",
        recipe={"metric": metric, "output_kind": kind},
    )
    return Exported(backup=backup, backup_training=training)


def _searched(
    teacher: Teacher,
    queries: Batch,
    metric: str,
    level: float,
    options: TeachingOptions,
    seconds: float,
    callbacks: Callbacks,
) -> Exported:
    """Search for the network that imitates the log best, as `protect` does for a model."""
    signature, device = teacher.signature, choose_device(options.device)
    rows = padded(queries, signature, ())
    split, queried = Queries.of(rows, metric=metric), teacher.describe(rows)
    model = place(teacher.network(), device)
    data = distill(model, teacher, split, device)
    context = TrainingContext(teacher, model, split, data, queried, options.seed, level)
    found = search(context, propose(teacher, queried, ()), seconds, callbacks)
    return max(found.finalists, key=lambda each: (each.covered, each.score)).exported()


class _Answers(nn.Module):
    """A log as a model: it gives the answer to each of its queries."""

    def __init__(self, queries: Batch, answers: Array, signature: Signature) -> None:
        super().__init__()
        self._signature = signature
        self._answers = dict(zip(self._keys(queries), answers, strict=True))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map the inputs' tensors (n, ...) to the answers (n, *output_shape)."""
        keys = self._keys(Rows(tensors).arrays(self._signature))
        return torch.from_numpy(np.stack([self._answers[each] for each in keys]))

    @staticmethod
    def _keys(queries: Batch) -> list[bytes]:
        count = rows_in(queries)
        return [b"".join(x[row].tobytes() for x in queries.values()) for row in range(count)]
