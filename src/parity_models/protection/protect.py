"""From a deployed model and unlabelled queries to a bundle with the best stand-ins, in some time.

Measure the model; propose candidates; train them by successive halving; calibrate and measure the
finalists; simulate them under the user's load; recommend; write.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from parity_models.evaluation.accuracy import Interval, too_few
from parity_models.evaluation.judging import GivenInputs
from parity_models.models.bundle import Bundle, InferenceTimes
from parity_models.models.inference_time import batch_time
from parity_models.models.manifest import BATCH
from parity_models.models.networks.queried import NO_QUERIES
from parity_models.models.onnx_model import OnnxModel
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.protection.advice import (
    Advice,
    Protection,
    Simulations,
    able,
    advise,
    two_backups,
    two_together,
)
from parity_models.protection.calm_run import ServingOverheads, measure_serving
from parity_models.protection.finalists import (
    SLOTS,
    Entry,
    Finalist,
    Measured,
    in_slots,
    measure,
    times_of,
)
from parity_models.protection.options import INSTANCES
from parity_models.protection.scene import Scene, Service, contention_of, offered
from parity_models.protection.search_options import SearchOptions
from parity_models.roles import DEPLOYED
from parity_models.tasks.metrics import OutputKind
from parity_models.training.bundling import (
    BackupPart,
    ParityPart,
    check_place,
    contents_of,
    write_measured,
)
from parity_models.training.callbacks import Callbacks
from parity_models.training.candidates import Proposal
from parity_models.training.device import BATCH as PREDICTED
from parity_models.training.device import Rows, choose_device, place, predict
from parity_models.training.distillation import distill, envelope_of
from parity_models.training.networks import queried_of
from parity_models.training.proposals import Costs, families, propose, propose_named
from parity_models.training.queries import Queries, find_queries
from parity_models.training.recipes import RunOptions
from parity_models.training.search import (
    FINALISTS,
    Found,
    Lesson,
    Search,
    Searched,
    SearchFolder,
)
from parity_models.training.teacher import Model, Teacher, open_teacher
from parity_models.training.train import training_of

GROUP = 4
"""Queries of the largest groups that are tried."""

FEWEST = 64
"""Queries that something can be learned from."""

FEWEST_GIVEN = 100
"""The fewest of the user's, so that FEWEST are left to learn from and 8 for validation."""

TEACHING = 0.25
"""The share of the time that the model may take to predict what is learned from."""

JUDGING, CALIBRATING = 2_000, 10_000
"""Queries at most that candidates are judged by during the search, and that the report is made of;
and that gates are calibrated with."""

FINISHING, MOST_FINISHING = 22.0, 0.4
"""Seconds for what comes after the search, at least, besides running the finalists; of all at most
this share."""

PROPOSALS = 2.0
"""It takes so many times as long as to propose candidates, as it exports and times as many."""

SERVED = (0.08, 4.0, 15.0)
"""The share of the time for a calm run of a server, from when on it is worth its start, and at
most, in seconds."""

STARTING = 4.0
"""Seconds that the server and its client take to start, and to end."""

REPEATED = 2
"""Simulations of each stand-in, on average: one that takes too much work is tried again."""

LEAST_SEARCHING = 0.1
"""The search has this share of the time, even if what comes before it took too long."""

WRITING, MOST_WRITING = 3.0, 0.3
"""Seconds of these for what comes after the simulations; at most this share."""


@dataclass(frozen=True)
class Report(Printed):
    """All that was measured in a search.

    `base` are the deployed model's milliseconds by batch size, `overheads` what serving takes
    besides, if there was time to measure it; `accuracy` is the model's own where there are labels,
    `plans` all that were simulated, each in the same `scene`. `interrupted`: the search was cut
    off, and can be resumed.
    """

    metric: str
    output_kind: OutputKind
    base: dict[int, float]
    overheads: ServingOverheads | None
    accuracy: float | None
    finalists: list[Finalist]
    plans: list[Protection]
    scene: Scene
    advice: Advice
    dropped: dict[str, str]
    test_queries: int
    interrupted: bool

    @property
    def parts(self) -> Sequence[RenderableType]:
        """Tables of the stand-ins found and of the simulations, and the advice."""
        notes = [sentence] if (sentence := too_few(self.test_queries)) else []
        return [self._frontier(), *notes, self._simulated(), *self.advice.sentences]

    def _frontier(self) -> Table:
        """Time against agreement and coverage, the fastest first; * are on the frontier."""
        table = Table(title=f"stand-ins found; {self.metric} agreement, %", title_justify="left")
        table.add_column("stand-in", min_width=20)
        times = ["ms" if batch == 1 else f"ms/{batch}" for batch in self.base]
        labelled = [] if self.accuracy is None else [self.metric]
        for heading in [*times, "of F", "agrees", "may answer", *labelled]:
            table.add_column(heading, justify="right")
        own = [] if self.accuracy is None else [f"{100 * self.accuracy:.1f}"]
        base = (f"{ms:.3f}" for ms in self.base.values())
        table.add_row("the model, F", *base, "1.00", "100", "", *own)
        best = on_frontier(self.finalists)
        for each in sorted(self.finalists, key=lambda one: one.share):
            accuracy = "" if each.accuracy is None else f"{100 * each.accuracy:.1f}"
            table.add_row(
                f"{each.name}{' *' if each.name in best else ''}",
                *(f"{each.ms[batch]:.3f}" for batch in self.base),
                f"{each.share:.2f}",
                f"{100 * each.agreement:.1f} {_span(each.interval)}",
                f"{100 * each.covered:.1f}",
                *[accuracy for _ in labelled],
            )
        table.caption = "in brackets: intervals that hold the true value in 95 of 100 cases"
        return table

    def _simulated(self) -> Table:
        title = f"simulated, {self.scene.queries:,} queries"
        if (batch := max(self.base)) > 1:
            title += f", batches of up to {batch}"
        table = Table(title=title, title_justify="left")
        table.add_column("plan", min_width=24)
        for heading in ("p50 ms", "p99", "p99.9", "copies", "stood in", "extra work"):
            table.add_column(heading, justify="right")
        for plan in self.plans:
            found = plan.outcome
            table.add_row(
                plan.name,
                *(f"{ms:.2f}" for ms in (found.p50_ms, found.p99_ms, found.p999_ms)),
                f"{found.copied:.1%}",
                f"{found.stood_in:.1%}",
                f"{plan.extra_work:.1%}",
            )
        table.caption = None if self.overheads is None else str(self.overheads)
        return table

    @property
    def explained(self) -> Sequence[RenderableType]:
        """Why each candidate that is not among the finalists was dropped, and why two or one."""
        table = Table(title="dropped", title_justify="left", show_lines=True)
        table.add_column("candidate")
        table.add_column("because")
        for name, why in self.dropped.items():
            table.add_row(name, why)
        return [*([table] if self.dropped else []), *self.advice.together]

    def as_json(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        scene = self.scene
        return {
            "model_ms": {str(batch): ms for batch, ms in self.base.items()},
            "model_accuracy": self.accuracy,
            "served": None if self.overheads is None else msgspec.to_builtins(self.overheads),
            "metric": self.metric,
            "output_kind": self.output_kind,
            "finalists": [
                {
                    "name": each.name,
                    "ms": {str(batch): ms for batch, ms in each.ms.items()},
                    "share": each.share,
                    "agreement": each.agreement,
                    "interval": each.interval,
                    "accuracy": each.accuracy,
                    "covered": each.covered,
                    "training_seconds": each.candidate.seconds,
                }
                for each in self.finalists
            ],
            "test_queries": self.test_queries,
            "scene": {
                "rate": scene.rate,
                "instances": scene.instances,
                "queries": scene.queries,
                "warm_up": scene.warm_up,
                "seed": scene.seed,
                "contention": msgspec.to_builtins(scene.contention),
            },
            "recommended": self.advice.plan.name,
            "helps": self.advice.helps,
            "plans": [
                {
                    "name": plan.name,
                    "stand_ins": [each.name for each in plan.finalists],
                    **msgspec.to_builtins(plan.outcome),
                    "extra_work": plan.extra_work,
                    "urgency": plan.urgency,
                }
                for plan in self.plans
            ],
            "dropped": self.dropped,
            "advice": list(self.advice.sentences),
            "together": list(self.advice.together),
            "interrupted": self.interrupted,
        }


def _span(interval: Interval | None) -> str:
    return "(too few)" if interval is None else f"({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def on_frontier(finalists: Sequence[Finalist]) -> set[str]:
    """Return the names of those that none is faster than and agrees as often as."""
    return {
        one.name
        for one in finalists
        if not any(
            other.share <= one.share
            and other.agreement >= one.agreement
            and (other.share, -other.agreement) != (one.share, -one.agreement)
            for other in finalists
        )
    }


@dataclass(frozen=True, kw_only=True)
class Protected(Printed, Bundle):
    """The bundle that a search wrote, and its `report`; `flags` serve it as was simulated."""

    report: Report
    flags: str

    @property
    def parts(self) -> Sequence[RenderableType]:
        """The report, and the command that serves the bundle."""
        said = [f"{self.path} holds it; serve it with: parm serve {self.path}{self.flags}"]
        if self.report.interrupted:
            said.append("interrupted: this is the best so far; resume the search to continue")
        return [*self.report.parts, *said]


def protect(
    model: Model,
    inputs: GivenInputs | None = None,
    /,
    *,
    out: Path | str,
    allow_code: Collection[str] = (),
    callbacks: Callbacks | None = None,
    began: float | None = None,
    options: SearchOptions | None = None,
    **given: Any,
) -> Protected:
    """Find the best stand-in for a model in a given time, and bundle the two.

    Backups and parity models of several sizes learn from the model's own predictions; labels are
    not needed. Those that others beat are dropped, the others are trained for longer, calibrated,
    timed, and simulated under the user's load: each alone, the best backup and the best parity
    model together, and the two best backups. Two are taken only if they are better than one by
    more than chance.

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: Queries, without labels: a file or a folder, an array (n, *query_shape), or an array
            for each input by name. By default those of a task.
        out: The folder of the bundle to write.
        allow_code: Encoders and decoders of one's own that the model's bundle may name.
        callbacks: Called as the search goes on.
        began: The time (of time.monotonic) from which the minutes count, by default now.
        options: All of SearchOptions at once, in place of some by name.
        **given: Fields of SearchOptions: minutes, agreement, extra_work, queries, load; in seconds
            where they are times.

    Returns:
        The bundle with the stand-ins that have the lowest p99 within the extra work, and the
        report. Ctrl-C ends the search, and the best so far is written; next to `out`, in the folder
        OUT.protect, is what is needed to resume.

    Raises:
        DataError: For queries that do not fit.
        ModelError: For a model that cannot be deployed.
        TrainingError: For a search that cannot be resumed.
        BundleError: If `out` is no place for a bundle.
        UserError: For options out of range; and, naming the nearest, if no stand-in reaches the
            agreement or keeps within the extra work; nothing is written then.
    """
    began = time.monotonic() if began is None else began
    chosen = gather(SearchOptions, options, given)
    with open_teacher(model, inputs, chosen.output, allow_code) as teacher:
        queries = find_queries(
            teacher,
            inputs,
            task=chosen.task,
            data_dir=chosen.data_dir,
            metric=chosen.metric,
            hflip=chosen.hflip,
            k=GROUP,
            least=FEWEST_GIVEN,
        )
        return protect_model(teacher, queries, out, chosen, callbacks, began)


def protect_model(
    teacher: Teacher,
    queries: Queries,
    out: Path | str,
    options: SearchOptions,
    callbacks: Callbacks | None = None,
    began: float | None = None,
) -> Protected:
    """Search with these `queries`; see `protect`."""
    began = time.monotonic() if began is None else began
    callbacks, out = callbacks or Callbacks(), Path(out).resolve()
    check_place(out)
    # A file that cannot be read is refused before anything is trained.
    contention_of(options, Service({DEPLOYED: 1.0}), options.instances or INSTANCES)
    total = 60 * options.minutes
    prepared = prepare(teacher, queries, options, callbacks)
    folder = SearchFolder(out.with_name(f"{out.name}.protect"))
    prepared_at = time.monotonic()
    if options.resume:
        searched = folder.read(prepared.options)
    else:
        searched = Searched(prepared.options, tuple(_proposals(prepared)))
        folder.begin(searched)
    search = Search(prepared.lesson, searched, folder, callbacks)
    now, end = time.monotonic(), began + total
    left = end - _finishing(total, now - prepared_at, prepared) - now
    found = search.run(max(left, LEAST_SEARCHING * total))
    finished = _finish(prepared, found, out, options, callbacks, end)
    if not found.interrupted:
        folder.clear()
    return finished


@dataclass(frozen=True)
class Prepared:
    """What candidates learn from and are measured by, and the options that determine the search.

    `measuring` are the seconds that the deployed model took for the queries of `measured`.
    """

    lesson: Lesson
    measured: Measured
    options: RunOptions
    measuring: float


def prepare(
    teacher: Teacher, queries: Queries, options: SearchOptions, callbacks: Callbacks
) -> Prepared:
    """Check the queries and the model, and have it predict.

    Where that would take too long, it predicts for fewer queries, and that is said.
    """
    queries.check(teacher, 8)
    if len(queries.train) < FEWEST:
        queries.check(teacher, FEWEST)
    device = choose_device(options.device)
    model = place(teacher.network(callbacks.on_predicted), device)
    began = time.monotonic()
    some = Rows.of(queries.train[:PREDICTED], teacher.signature, device)
    predict(model, some)
    row_seconds = max(1e-9, (time.monotonic() - began) / len(some))
    sha256 = queries.sha256
    queries = _affordable(queries, row_seconds, options, callbacks)
    data = distill(model, teacher, queries, device, options.output_kind)
    learned = time.monotonic()
    measured = Measured.by(teacher.bundle, queries, data.metric)
    now = time.monotonic()
    callbacks.say(
        f"the model's predictions are {data.output_kind}, judged by {data.metric}; it took "
        f"{now - began:.0f} s to predict for {len(queries.train):,} queries to learn from"
    )
    queried = NO_QUERIES if teacher.plain else queried_of(teacher, queries.train)
    judging = row_seconds * len(queries.validation)
    lesson = Lesson(teacher, model, data, options.agreement, options.seed, queried, judging)
    determining: RunOptions = {
        "model": teacher.sha256,
        "inputs": sha256,
        "hflip": queries.hflip,
        "output": teacher.output.name,
        "metric": data.metric,
        "output-kind": data.output_kind,
        "agreement": options.agreement,
        "seed": options.seed,
    }
    return Prepared(lesson, measured, determining, now - learned)


def _affordable(
    queries: Queries, row_seconds: float, options: SearchOptions, callbacks: Callbacks
) -> Queries:
    """Return a part of the queries that the model can predict in the time that there is."""
    validated = _some(len(queries.validation), JUDGING)
    labels = queries.validation_labels
    queries = replace(
        queries,
        validation=queries.validation[validated],
        validation_labels=None if labels is None else labels[validated],
    )
    if queries.calibration is not None:
        some = _some(len(queries.calibration), CALIBRATING)
        queries = replace(queries, calibration=queries.calibration[some])
    if queries.test is not None:
        tested, labels = _some(len(queries.test), JUDGING), queries.test_labels
        queries = replace(
            queries,
            test=queries.test[tested],
            test_labels=None if labels is None else labels[tested],
        )
    ways = 1 + queries.hflip
    most = max(FEWEST, int(TEACHING * 60 * options.minutes / (ways * row_seconds)))
    if len(queries.train) > most:
        callbacks.say(
            f"the model takes too long to predict for all {len(queries.train):,} queries: {most:,} "
            "are learned from; give more --minutes for more"
        )
        queries = replace(queries, train=queries.train[_some(len(queries.train), most)])
    return queries


def _some(rows: int, most: int) -> NDArray[np.int64]:
    """Draw at most so many places of `rows`, in their order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def _proposals(prepared: Prepared) -> list[Proposal]:
    lesson, teacher = prepared.lesson, prepared.lesson.teacher
    if not teacher.plain:
        return propose_named(teacher, lesson.queried, prepared.measured.sizes)[0]
    model = OnnxModel(teacher.bundle.deployed_path)
    return propose(Costs(model, families(model.signature.input.shape)))


def _finishing(total: float, proposing: float, prepared: Prepared) -> float:
    """Return the seconds of the `total` for what comes after the search."""
    # Hardly a finalist is slower than the model. The accuracies take as long as one of them more.
    coded = 0 if prepared.lesson.teacher.plain else len(SLOTS)
    running = (FINALISTS + coded + 1) * prepared.measuring
    serving = _serving(total)
    serving += STARTING if serving else 0.0
    return min(max(FINISHING, PROPOSALS * proposing) + running + serving, MOST_FINISHING * total)


def _serving(total: float) -> float:
    """Return the seconds of the `total` for the calm run of a server; 0: none."""
    share, least, most = SERVED
    seconds = min(most, share * total)
    return seconds if seconds >= least else 0.0


def _overheads(
    deployed: Bundle,
    ms: float,
    prepared: Prepared,
    options: SearchOptions,
    callbacks: Callbacks,
    left: float,
) -> ServingOverheads | None:
    """Measure what serving takes, unless that would leave the simulations too little time."""
    seconds = _serving(60 * options.minutes)
    if not seconds or left < 2 * (seconds + STARTING):
        return None
    instances = options.instances or INSTANCES
    rate = offered(options, Service({DEPLOYED: ms / 1e3}), instances)
    sizes = prepared.measured.sizes
    return measure_serving(deployed, sizes, ms, rate, instances, seconds, callbacks.say)


def _finish(
    prepared: Prepared,
    found: Found,
    out: Path,
    options: SearchOptions,
    callbacks: Callbacks,
    end: float,
) -> Protected:
    """Measure, simulate, recommend and write."""
    lesson, measured = prepared.lesson, prepared.measured
    deployed = lesson.teacher.bundle
    batches = sorted({1, options.max_batch or BATCH})
    with TemporaryDirectory() as temporary:
        entries = [Entry(each.proposal, each.exported(), each) for each in found.finalists]
        coded, refused = in_slots(entries, lesson.teacher)
        base, finalists = measure(
            [*entries, *coded], deployed, measured, options.agreement, batches, Path(temporary)
        )
    own = deployed.stored(deployed.manifest.deployed)
    of_batch = base[BATCH] if BATCH in base else batch_time(own, measured.sizes)
    times = InferenceTimes(base[1], None, (), of_batch)
    capable = able(finalists, options)
    now = time.monotonic()
    overheads = _overheads(deployed, base[1], prepared, options, callbacks, end - now)
    left = max(0.0, end - time.monotonic())
    # Each by itself, two together of either sort, and hedging.
    count = REPEATED * (len(capable) + 2) + 1
    left -= min(WRITING, MOST_WRITING * left)
    max_batch = options.max_batch or times.batch
    simulations = Simulations(options, base, left, count, max_batch, overheads)
    others = [simulations.without, simulations.hedging()]
    tried = [simulations.with_stand_ins(each) for each in capable]
    alone = [each[-1] for each in tried]
    for company in (two_together(alone, options), two_backups(alone, options)):
        if company:
            tried.append(simulations.with_stand_ins(*company))
    plans, at_full = [each[-1] for each in tried], [each[0] for each in tried]
    advice = advise(plans, at_full, others, options)
    report = Report(
        measured.metric,
        lesson.data.output_kind,
        base,
        overheads,
        measured.accuracy,
        finalists,
        [*others, *plans],
        simulations.scene,
        advice,
        found.dropped | refused,
        len(measured.test),
        found.interrupted,
    )
    bundle = write_protected(prepared, advice.plan.finalists, times, out)
    return Protected(**vars(bundle), report=report, flags=_flags(options, advice))


def _flags(options: SearchOptions, advice: Advice) -> str:
    """Return the options of parm serve for the recommended plan."""
    policy = "" if advice.plan.urgency is None else f"adaptive@urgency={advice.plan.urgency:g}"
    given = {"agreement": options.agreement, "max-batch": options.max_batch, "policy": policy}
    return "".join(f" --{name} {value}" for name, value in given.items() if value)


def write_protected(
    prepared: Prepared, chosen: Sequence[Finalist], times: InferenceTimes, out: Path
) -> Bundle:
    """Write the deployed model and what was `chosen` to `out`, whole or not at all.

    Chosen are backups or a parity model or one of each; `times` are those of the deployed model.
    Without a backup among them, the parity model's slot is one, if it may answer.
    """
    lesson = prepared.lesson
    teacher, queries = lesson.teacher, prepared.measured.queries
    task = teacher.bundle.manifest.task
    parity, backups = ParityPart(), list[BackupPart]()
    for each in chosen:
        training = training_of(each.candidate, queries, task, lesson.seed)
        if each.coded:
            gate = each.calibration.get("reconstruction")
            parity = ParityPart(each.proposal.code, each.exported, training, gate)
        else:
            assert each.exported.backup is not None
            gate = each.calibration.get("backup")
            backups.append(BackupPart(each.exported.backup, training, gate))
    slot = parity.models.backup
    if not backups and slot is not None and chosen[0].has_slot:
        backups = [BackupPart(slot, None, chosen[0].calibration.get("backup"))]
    # The narrower envelope: that of one which did not learn from mirrored queries, if there is one.
    data = min((each.candidate.data for each in chosen), key=lambda each: each.mirrored)
    contents = contents_of(
        teacher.bundle,
        parity,
        backups,
        envelope_of(data, teacher),
        times=times_of(chosen, times),
    )
    metric = prepared.measured.metric
    return write_measured(out, contents, queries, metric, calibrated=True)[0]
