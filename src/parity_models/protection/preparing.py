"""What a search begins with: the model, and what it says of the queries."""

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.models.bundle import Bundle
from parity_models.protection.audience import Audience
from parity_models.protection.finalists import Measured
from parity_models.protection.wishes import Wishes
from parity_models.tasks.unlabelled import choose_metric
from parity_models.training.checkpoint import Options
from parity_models.training.device import choose_device, place
from parity_models.training.device_queries import BATCH, predict
from parity_models.training.held_out import Queries
from parity_models.training.inputs import check_inputs, check_rows_apart
from parity_models.training.lessons import lessons_of
from parity_models.training.rows import Rows, on_device
from parity_models.training.run import digest
from parity_models.training.stand_in_network import queried
from parity_models.training.subject import subject_of
from parity_models.training.teacher import load_teacher
from parity_models.training.trainee import Teaching

TEACHING = 0.25
"""The share of the time that the model may take to predict what is learned from."""

JUDGING = 2_000
"""Queries that candidates are judged by during the search, and that the report is made of, at
most."""

CALIBRATING = 10_000
"""Queries that gates are calibrated with, at most."""

FEWEST = 64
"""Queries that something can be learned from."""


@dataclass(frozen=True)
class Prepared:
    """What candidates learn from, what they are measured by, and what determines the search.

    `measuring` are the seconds that the deployed model took for the queries of `measured`.
    """

    teaching: Teaching
    measured: Measured
    options: Options
    task: str
    inputs_sha256: str
    measuring: float


def prepare(deployed: Bundle, queries: Queries, wishes: Wishes, audience: Audience) -> Prepared:
    """Check the queries and the model, and have it predict.

    Where that would take too long, it predicts for fewer queries, and that is said. Raises as
    `protect` does.
    """
    subject = subject_of(deployed)
    choose_metric(queries.metric, subject.output.shape)
    check_inputs(queries.train, subject, FEWEST)
    if queries.validation is not None:
        check_inputs(queries.validation.inputs, subject, 8, "validation inputs")
    device = choose_device(wishes.device)
    model = place(load_teacher(deployed, audience.predicted), device)
    began = time.monotonic()
    some = on_device(queries.train[:BATCH], subject, device)
    check_rows_apart(model, some)
    sha256 = digest(queries.train)
    row_seconds = _seconds_a_row(model, some)
    queries = _affordable(queries, row_seconds, wishes, audience)
    lessons = lessons_of(
        model,
        subject,
        queries.train,
        queries.validation,
        device,
        metric=queries.metric,
        output_kind=wishes.output_kind,
        mirrored=queries.flips,
        least=8,
    )
    learned = time.monotonic()
    measured = Measured.by(
        deployed, queries.calibration, queries.test, queries.test_labels, lessons.metric
    )
    now = time.monotonic()
    measuring, took = now - learned, now - began
    audience.say(
        f"the model's predictions are {lessons.output_kind}, judged by {lessons.metric}; it took "
        f"{took:.0f} s to predict for {len(queries.train):,} queries to learn from"
    )
    teaching = Teaching(
        deployed,
        subject,
        model,
        lessons,
        wishes.agreement,
        wishes.seed,
        () if subject.plain else queried(deployed, queries.train),
        row_seconds * len(lessons.held_out.inputs),
    )
    options = _options_of(teaching, sha256, flips=queries.flips)
    return Prepared(teaching, measured, options, deployed.manifest.task, sha256, measuring)


def _options_of(teaching: Teaching, inputs: str, *, flips: bool) -> Options:
    """What a search that was stopped has to agree in to be resumed; `inputs` is their hash."""
    return {
        "model": teaching.bundle.manifest.deployed.sha256,
        "inputs": inputs,
        "flips": flips,
        "imitates": teaching.subject.output.name,
        "metric": teaching.lessons.metric,
        "output-kind": teaching.lessons.output_kind,
        "agreement": teaching.level,
        "seed": teaching.seed,
    }


def _affordable(
    queries: Queries, row_seconds: float, wishes: Wishes, audience: Audience
) -> Queries:
    """A part of the queries that the model can predict in the time that there is."""
    validation = queries.validation
    if validation is not None and len(validation) > JUDGING:
        validation = validation.take(np.sort(_some(len(validation), JUDGING)))
    tested = _some(len(queries.test), JUDGING)
    labels = None if queries.test_labels is None else queries.test_labels[tested]
    calibration = queries.calibration[_some(len(queries.calibration), CALIBRATING)]
    train = queries.train
    ways = 1 + queries.flips
    most = max(FEWEST, int(TEACHING * 60 * wishes.minutes / (ways * row_seconds)))
    if len(train) > most:
        audience.say(
            f"the model takes too long to predict for all {len(train):,} queries: {most:,} are "
            "learned from; give more --minutes for more"
        )
        train = train[_some(len(train), most)]
    return replace(
        queries,
        train=train,
        validation=validation,
        calibration=calibration,
        test=queries.test[tested],
        test_labels=labels,
    )


def _seconds_a_row(model: nn.Module, rows: Rows | Tensor) -> float:
    """How long the model takes for each of many queries."""
    began = time.perf_counter()
    predict(model, rows)
    return max(1e-9, (time.perf_counter() - began) / len(rows))


def _some(rows: int, most: int) -> NDArray[np.int64]:
    """At most so many places of `rows`, drawn, in their order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])
