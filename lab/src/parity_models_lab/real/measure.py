"""Training and judging the stand-ins of one real model."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from os import getloadavg
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.calibration import calibrate_answers
from parity_models.evaluation.interval import score_interval
from parity_models.evaluation.predictor import deployed_predictor
from parity_models.evaluation.stand_ins import StandInAnswers, answers_of
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.gate import Gate
from parity_models.models.named_inputs import Named, rows_of
from parity_models.models.onnx_model import OnnxModel
from parity_models.tasks.agreeing import agreement_for
from parity_models.tasks.metrics import agreement, score
from parity_models.tasks.output_kind import choose_output_kind
from parity_models.tasks.unlabelled import labels_from
from parity_models.training import Settings, train_backup
from parity_models.training.slots import train_slots
from parity_models.training.stacked import STACKED
from parity_models_lab.real.prepared import Prepared, Trained
from parity_models_lab.real.results import RealResult, StandInResult

Array = NDArray[Any]
Say = Callable[[str], None]

LEVEL = 0.99
"""The level of agreement that coverage is told for."""

TIMED = 60
"""Test queries that times are measured with, one at a time; ..."""

REPEATED = 25
"""... each so many times. The least counts: a model that takes long is interrupted more often by
what else the machine does, and seems slower beside one that does not unless it is tried often."""

SEARCHED = 2000
"""Test queries among which nearest neighbours are looked for."""


@dataclass(frozen=True)
class Truth:
    """Queries held out and queries of the test, what the model says of them, what judges answers,
    and what is right, where that is known."""

    held_out: Array
    test: Array
    said_held_out: Array
    said: Array
    output_kind: str
    metric: str
    labels: Array | None


def measure(prepared: Prepared, seed: int, say: Say) -> RealResult:
    """Train the networks that the prepared model names, and judge them and its own stand-ins.

    Raises what training and evaluation raise for queries and networks that do not fit.
    """
    about = prepared.about
    with prepared.bundle() as plain:
        learned, held_out = prepared.rows(plain)
        say(f"{about.name}: the model predicts")
        truth = _truth(prepared, plain, held_out)
        found = []
        for trained in about.networks:
            say(f"{about.name}: {trained.name}, trained for {trained.seconds:g} s")
            with _trained(plain, trained, learned, truth, seed) as bundle:
                found.append(judge(bundle, truth, trained.name, trained.seconds))
        for own in prepared.own:
            say(f"{about.name}: {own.name}")
            with prepared.bundle(own) as bundle:
                found.append(judge(bundle, truth, own.stem, None))
        signature = plain.manifest.deployed.signature
    return RealResult(
        name=about.name,
        title=about.title,
        about=about.about,
        signature=f"{signature} to {', '.join(map(str, signature.outputs))}",
        metric=truth.metric,
        output_kind=truth.output_kind,
        learned_from=len(learned),
        queries=len(truth.test),
        available=None if truth.labels is None else score(truth.metric, truth.said, truth.labels),
        milliseconds=median(one.milliseconds / one.relative for one in found) if found else 0.0,
        date=date.today().isoformat(),
        load=getloadavg()[0],
        stand_ins=tuple(sorted(found, key=lambda one: one.relative)),
    )


def judge(bundle: Bundle, truth: Truth, network: str, seconds: float | None) -> StandInResult:
    """How the parity model of `bundle` does, or else its backup."""
    code, manifest = bundle.code(), bundle.manifest
    stand_in = manifest.backups[0] if code is None else manifest.parity[0]
    answers = _answers(bundle, truth.test, truth.said).outputs
    held_out = _answers(bundle, truth.held_out, truth.said_held_out, independent=True)
    coverage, gated = _gated(truth, answers, held_out)
    models = [_model(bundle, which) for which in (manifest.deployed, stand_in)]
    base, took = query_times(models, truth.test, code)
    right = labels_from(truth.said, truth.metric)
    return StandInResult(
        network=network,
        seconds=seconds,
        degraded=None if truth.labels is None else score(truth.metric, answers, truth.labels),
        agreement=agreement(truth.metric, answers, truth.said),
        interval=score_interval(truth.metric, answers, right),
        neighbours=same_neighbours(answers, truth.said) if truth.metric == "cosine" else None,
        coverage=coverage,
        gated=gated,
        milliseconds=took,
        relative=took / base,
    )


def same_neighbours(answers: Array, predictions: Array) -> float:
    """The share of queries whose nearest neighbour among the other queries' `predictions` (n,
    values) is the same by their own of `answers` (n, values), by the angle between them.

    Of many queries the first SEARCHED.
    """
    one, other = answers[:SEARCHED], predictions[:SEARCHED]
    units = other / np.linalg.norm(other, axis=1, keepdims=True)
    nearest = []
    for each in (one, other):
        similar = each @ units.T
        np.fill_diagonal(similar, -np.inf)
        nearest.append(similar.argmax(axis=1))
    return float(np.mean(nearest[0] == nearest[1]))


def query_times(models: list[OnnxModel], rows: Array, code: Code | None = None) -> list[float]:
    """Milliseconds that each of the models takes for one of `rows`, undisturbed, each in its own
    bucket: the median of the first TIMED. With a `code`, all but the first take k such rows.

    The models take turns, so that whatever else the machine does meets all of them alike.
    """
    signature = models[0].signature
    arrays: Named = signature.kind_of(rows[0, ...]).input.split(rows)
    taken: list[list[float]] = [[] for _ in models]
    for place in range(min(len(rows), TIMED)):
        row = rows_of(arrays, signature, [place])
        parity = row if code is None else code.encode([row] * code.k)[0]
        feeds = [row, *[parity] * (len(models) - 1)]
        for model, fed, times in zip(models, feeds, taken, strict=True):
            model(fed)  # the first of a shape takes longer
            times.append(1000 * min(_seconds(model, fed) for _ in range(REPEATED)))
    return [median(times) for times in taken]


def _seconds(model: OnnxModel, row: Array) -> float:
    begin = time.perf_counter()
    model(row)
    return time.perf_counter() - begin


def _truth(prepared: Prepared, plain: Bundle, held_out: Array) -> Truth:
    test = prepared.test(plain)
    run = deployed_predictor(plain)
    said_held_out, said = run(held_out), run(test)
    kind, metric = choose_output_kind(None, None, said)
    labels = prepared.labels(metric, len(test), plain.manifest.deployed.signature)
    return Truth(held_out, test, said_held_out, said, kind, metric, labels)


@contextmanager
def _trained(
    plain: Bundle, trained: Trained, learned: Array, truth: Truth, seed: int
) -> Iterator[Bundle]:
    settings = Settings(seconds=trained.seconds, seed=seed)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        if trained.k == 1:
            train_backup(plain, trained.network, learned, out, settings, metric=truth.metric)
        else:
            spec = CodeSpec("stack", "separate", trained.k, encoder_options=STACKED)
            metric = truth.metric
            train_slots(plain, spec, trained.network, learned, out, settings, metric=metric)
        yield open_bundle(out)


def _answers(
    bundle: Bundle, queries: Array, said: Array, independent: bool = False
) -> StandInAnswers:
    """What the stand-in of `bundle` gives for `queries`, in their order."""
    found = answers_of(bundle, queries, said, independent=independent)
    given = found["backup" if bundle.manifest.code is None else "reconstruction"]
    order = np.argsort(given.rows)
    return StandInAnswers(given.outputs[order], given.rows[order])


def _gated(
    truth: Truth, answers: Array, held_out: StandInAnswers
) -> tuple[float | None, float | None]:
    """Coverage of the gate at LEVEL on the test, and the agreement of what it lets through."""
    agree = agreement_for(truth.metric, truth.said_held_out)
    said = truth.said_held_out[held_out.rows]
    calibration = calibrate_answers(held_out, said, agree, (LEVEL,))
    if not calibration.levels:
        return None, None
    given = ~Gate(calibration.confidence, calibration.levels[0]).refused(answers)
    agreed = agree(answers, truth.said)
    return float(given.mean()), float(agreed[given].mean()) if given.any() else None


def _model(bundle: Bundle, which: Any) -> OnnxModel:
    pinned = bundle.pinned(which)
    return OnnxModel(pinned.read(), signature=pinned.signature)
