"""From a deployed model and unlabelled queries to a bundle with the best stand-in: `protect`.

The steps: search for stand-ins, measure the finalists, simulate them under the user's load, choose
one, calibrate it, and write the bundle. All have a limited time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Unpack

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from parity_models.bundle.bundle import Accuracy, Bundle, NewModel, write_bundle
from parity_models.bundle.inference_time import inference_times
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.bundle.servable import OWN
from parity_models.errors import DataError, UserError, spell
from parity_models.evaluation.judging import (
    GivenInputs,
    Interval,
    accuracy_table,
    answered_classes,
    calibrate_gates,
    judge,
    load_queries,
    share_interval,
)
from parity_models.evaluation.outputs import Outputs, deployed_predictor, load, predictor
from parity_models.options import gather, option
from parity_models.printed import Printed
from parity_models.progress import Callbacks
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import DIFFER, PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns
from parity_models.sizing.scenario import (
    ALIKE,
    INSTANCES,
    QUANTILES,
    Outcome,
    Scenario,
    ScenarioOptions,
    Service,
    outcome_table,
)
from parity_models.tasks.metrics import (
    METRICS,
    USUAL,
    OutputKind,
    agreement_for,
    choose_metric,
    labels_from,
    recognise,
    score,
)
from parity_models.tensors.pairs import Pairs, read_pairs
from parity_models.tensors.queries import commonest, take
from parity_models.tensors.signature import Array, Batch
from parity_models.training.candidates import Candidate, Exported, TrainingContext, saving
from parity_models.training.device import BATCH as PREDICTED
from parity_models.training.device import Rows, choose_device, place, predict
from parity_models.training.distillation import distill
from parity_models.training.search import FINALISTS, Search, propose, search_log
from parity_models.training.teacher import (
    HELD_OUT,
    Model,
    Queries,
    Teacher,
    TeachingOptions,
    TrainingOptions,
    find_queries,
    open_teacher,
    teacher_of,
)
from parity_models.training.texts import fit_texts
from parity_models.training.train import check_place, write_trained
from parity_models.trust.calibration import estimate_coverage
from parity_models.trust.doubt import fit_doubt
from parity_models.trust.envelope import fit_envelope
from parity_models.trust.gate import (
    AGREEMENT,
    LEAST_LEVEL,
    confidences,
    served,
    suited,
)

if TYPE_CHECKING:
    from parity_models.fields import SearchOptionsFields

FEWEST, FEWEST_GIVEN = 64, 100
"""The fewest queries to learn from, and to be given: three tenths of the latter are held out."""

FEWEST_PAIRS = 20
"""The fewest pairs of queries and answers to learn from."""

TEACHING = 0.25
"""The largest share of the time in which the model predicts for the queries to learn from."""

JUDGING, CALIBRATING = 2_000, 10_000
"""The most queries that candidates are judged by, and that gates are calibrated with."""

FINISHING, MOST_FINISHING = 22.0, 0.4
"""Seconds after the search besides the finalists' runs; the largest share of the time with them."""

LEAST_SEARCHING = 0.1
"""The smallest share of the time for the search, even if what comes before it took too long."""

LEAST_QUERIES, QUERIES, MOST_QUERIES = 3_000, 10_000, 40_000
"""Queries of a simulation: the fewest, those per minute of the whole search, and the most."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(TeachingOptions, ScenarioOptions):
    """The options of a search for stand-ins, and the scenario in which they are simulated."""

    minutes: float = option(10.0, "Time for the whole search.", gt=0, le=10_000, metavar="MINUTES")
    differ: Annotated[float, DIFFER] = Adaptive.Options.differ
    agreement: float | None = option(
        None,
        "Minimum agreement of single answers of the stand-in, which calibration must show.",
        ge=LEAST_LEVEL,
        lt=1,
        unit="share",
    )
    answer_only: str | None = option(
        None,
        "Classes for the stand-in, separated by commas; CLASS=LEVEL sets a higher level.",
        metavar="CLASS[=LEVEL]",
    )
    pool: str | None = option(
        None,
        "mean: imitate an added output, the mean of the tokens' rows, scaled to length 1.",
        metavar="HOW",
    )


@dataclass
class Finalist:
    """The measurements of a trained candidate.

    `ms` are the milliseconds of a run, and `share` their ratio to the model's. `agreement` is the
    score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's. `covered` is the share of queries that it may answer at the wanted level, an estimate
    until it is calibrated. `doubts` are equally likely doubts of its outputs, ascending. `outcome`
    is simulated, with it as the stand-in.
    """

    name: str
    ms: float
    share: float
    agreement: float
    interval: Interval | None
    covered: float
    doubts: Sequence[float]
    outcome: Outcome | None = None

    @property
    def saving(self) -> float:
        """The mean time that it saves a late query over a copy, as a share of the model's."""
        return saving(self.covered, self.share)

    def service(self, *, gated: bool) -> Service:
        """Return the service with this stand-in; if `gated`, it may answer a share `covered`."""
        covered = {Source.BACKUP: self.covered}
        return Service(
            {DEPLOYED: self.ms / self.share / 1e3, BACKUP: self.ms / 1e3},
            StandIns(None, True),
            covered,
            covered if gated else {},
            {Source.BACKUP: self.doubts},
        )


@dataclass(frozen=True)
class Report(Printed):
    """All that was measured in a search.

    `level` is the agreement that candidates are compared at, and `model_ms` the deployed model's
    time in ms. The chosen one of the `finalists` comes first.
    The simulations had `queries` at a `rate` per second on `instances`; `without` and `hedging` are
    the outcomes without redundancy and with hedging. `dropped` gives the reasons against other
    candidates. `interrupted`: the search was cut off.
    """

    metric: str
    output_kind: OutputKind
    level: float
    model_ms: float
    finalists: list[Finalist]
    without: Outcome
    hedging: Outcome
    queries: int
    rate: float
    instances: int
    dropped: dict[str, str]
    interrupted: bool

    @property
    def parts(self) -> Sequence[RenderableType]:
        """Tables of the stand-ins found and of the simulations, and the advice."""
        table = Table(title=f"stand-ins found; {self.metric} agreement, %", title_justify="left")
        table.add_column("stand-in", min_width=20)
        # Of values, it is a mean, such as a cosine's, and no share of outputs that agree.
        agrees = "agrees" if METRICS[self.metric].kind == "classes" else "score"
        for heading in ("ms", "of model", agrees, "surest"):
            table.add_column(heading, justify="right")
        table.add_row("the model", f"{self.model_ms:.3f}", "1.00", "100", "")
        for each in sorted(self.finalists, key=lambda one: one.share):
            low, high = each.interval or (0.0, 0.0)
            span = f"({100 * low:.1f}-{100 * high:.1f})" if each.interval else ""
            table.add_row(
                each.name,
                f"{each.ms:.3f}",
                f"{each.share:.2f}",
                f"{100 * each.agreement:.1f} {span}",
                f"{100 * each.covered:.1f}",
            )
        table.caption = (
            "in brackets: intervals that hold the true value in 95 of 100 cases\n"
            f"surest: the largest share of outputs of which {self.level:.4g} agree"
        )
        rows = [(EqualResources.name, self.without, ()), (Hedging.name, self.hedging, ())]
        rows += [(one.name, one.outcome, ()) for one in self.finalists if one.outcome is not None]
        return [table, outcome_table(f"{self.queries:,} queries", rows), self.advice]

    @property
    def rival(self) -> str | None:
        """The policy without a stand-in that does as well as the chosen one; None: none does."""
        assert self.finalists[0].outcome is not None
        most = ALIKE * self.finalists[0].outcome.p99_ms
        name, best = EqualResources.name, self.without
        if self.hedging.p99_ms < best.p99_ms:
            name, best = Hedging.name, self.hedging
        return name if best.p99_ms <= most else None

    @property
    def advice(self) -> str:
        """The gain of the chosen stand-in over the better of no redundancy and hedging."""
        best, without, said = self.finalists[0], self.without, "Recommended:"
        found = best.outcome
        assert found is not None
        if self.rival is not None:
            said = (
                f"No stand-in helps here: {self.rival} does as well within the {ALIKE - 1:.0%} of "
                "p99 that may be chance. The best is"
            )
        return (
            f"{said} {best.name}. It takes {best.share:.2f} of the model's time. Simulated: it "
            f"answers {found.stood_in:.1%} of queries, and {found.differ:.3%} of all answers "
            f"differ from the model's; p99 {found.p99_ms:.2f} ms, not "
            f"{without.p99_ms:.2f}; p99.9 {found.p999_ms:.2f} ms, not {without.p999_ms:.2f}; "
            f"{found.busy_ms:.2f} ms of an instance for each query, not {without.busy_ms:.2f}."
        )


@dataclass(frozen=True, kw_only=True)
class Protected(Printed, Bundle):
    """The bundle that a search wrote, the `report`, and the `flags` to serve it as simulated.

    Of stand-ins for texts or of a log, the report is the accuracy on queries held out; `notes` say
    how the log was read.
    """

    report: Report | Accuracy
    flags: str = ""
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[RenderableType]:
        """The report, and the command that serves the bundle."""
        if isinstance(self.report, Accuracy):
            table = accuracy_table(self, self.report)
            way = " --deployed URL" if self.manifest.deployed.elsewhere else ""
            advice = (
                f"{self.path} holds it; put it in front of the model with "
                f"parity_models.Late({str(self.path)!r}) or parm serve {self.path}{way}"
            )
            return [*self.notes, table, *self.gates.parts, advice]
        said = [f"{self.path} holds it; serve it with: parm serve {self.path}{self.flags}"]
        if self.report.interrupted:
            said.append("interrupted: this is the best so far")
        return [*self.report.parts, *said]


def protect(
    model: Model | None = None,
    inputs: GivenInputs | None = None,
    /,
    *,
    pairs: Path | str | None = None,
    out: Path | str,
    callbacks: Callbacks | None = None,
    options: SearchOptions | None = None,
    **given: Unpack["SearchOptionsFields"],
) -> Protected:
    """Find the best stand-in for a model in a given time, and bundle the two.

    Backups of several sizes learn from the model's own predictions; labels are not needed. Backups
    that others beat are dropped. The rest are trained for longer, timed, and simulated under your
    load.

    Args:
        model: A bundle, the path of one or of an ONNX file, or a torch module.
        inputs: Queries, without labels: a file, an array (n, *query_shape), or an array for each
            input by name.
        pairs: A log of queries and answers (see `tensors.pairs`) in place of the two. The bundle
            then holds no model, as that runs elsewhere.
        out: The folder of the bundle to write.
        callbacks: Called as the search goes on.
        options: All options as a SearchOptions, instead of fields by name.
        **given: Fields of SearchOptions, such as minutes and differ.

    Returns:
        The report, and the bundle with the best stand-in: the one with the lowest simulated p99,
        while a share `differ` of all answers may differ. Ctrl-C ends the search and writes the best
        so far.

    Raises:
        DataError: For queries that do not fit.
        ModelError: For a model that cannot be deployed.
        TrainingError: If no candidate could be trained.
        BundleError: A bundle cannot be written to `out`.
        UserError: For options out of range. Nothing is written then.
    """
    chosen = gather(SearchOptions, options, given)
    end = time.monotonic() + 60 * chosen.minutes
    said, out = callbacks or Callbacks(), Path(out).resolve()
    if pairs is not None and model is None and inputs is None:
        log = read_pairs(Path(pairs))
        absent = NewModel(b"", OWN, signature=log.signature)
        with TemporaryDirectory() as folder:
            bare = write_bundle(Path(folder, "bare"), deployed=absent, labels=log.labels)
            teacher, answers = teacher_of(bare, chosen.output), log.predictions(log.labels)
            return _imitate(teacher, log.inputs, answers, out, chosen, said, log)
    if pairs is not None or model is None or inputs is None:
        raise UserError(
            f"give {spell('model')} and {spell('inputs')}, or {spell('pairs')} in their place"
        )
    chosen.faults(chosen.instances or INSTANCES)  # refuses a wrong plan before the search
    with open_teacher(model, inputs, chosen.output, chosen.pool) as teacher:
        if any(each.is_text for each in teacher.signature.inputs):
            texts = load_queries(inputs, teacher.bundle, FEWEST_PAIRS)
            predictions = deployed_predictor(teacher.bundle)(texts)
            return _imitate(teacher, texts, predictions, out, chosen, said)
        queries = find_queries(teacher, inputs, chosen, least=FEWEST_GIVEN)
        check_place(out)
        context, row_seconds = prepare(teacher, queries, chosen, said)
        test = context.queries.test
        assert test is not None
        proposals = propose(teacher, context.queried, commonest(test, teacher.signature))
        total = 60 * chosen.minutes
        # Hardly any finalist is slower than the model.
        running = (FINALISTS + 1) * row_seconds * 2 * len(test)
        finishing = min(FINISHING + running, MOST_FINISHING * total)
        seconds = max(end - finishing - time.monotonic(), LEAST_SEARCHING * total)
        return _finish(context, Search(context, seconds, said).run(proposals), out, chosen)


def _imitate(
    teacher: Teacher,
    queries: Batch,
    predictions: Array,
    out: Path,
    options: SearchOptions,
    callbacks: Callbacks,
    log: Pairs | None = None,
) -> Protected:
    """Bundle one backup, trained on queries, by input, and the model's outputs for them.

    A tenth of the queries calibrates the backup: the newest of a `log` that has times, else some
    drawn at random.
    """
    check_place(out)
    count = len(predictions)
    if count < FEWEST_PAIRS:
        raise DataError(f"there are {count} distinct queries, too few: give {FEWEST_PAIRS} or more")
    order = np.random.default_rng(0).permutation(count)
    if log is not None and log.times:
        order = np.arange(count)
    learned, held = np.split(order, [count - min(CALIBRATING, count // HELD_OUT)])
    targets, learning, held_out = predictions[learned], take(queries, learned), take(queries, held)
    kind = recognise(targets, options.metric)
    metric = choose_metric(options.metric or USUAL[kind], targets.shape[1:])
    learn = TrainingOptions(
        metric=metric, seed=options.seed, device=options.device, seconds=60 * options.minutes
    )
    only = answered_classes(teacher.bundle, options.answer_only)
    train = fit_texts if any(x.dtype.hasobject for x in queries.values()) else search_log
    made = train(teacher, learning, targets, learn, callbacks)
    envelope = fit_envelope(teacher.signature.inputs, learning, held_out, targets)
    contents = made.contents(teacher.bundle, envelope, commonest(learning, teacher.signature))
    with TemporaryDirectory() as folder:
        draft = write_bundle(Path(folder, "draft"), **contents)
        outputs = Outputs(draft, held_out, predictions=predictions[held])
        named = [] if options.agreement is None else [options.agreement]
        gates = calibrate_gates(outputs, metric=metric, named=named, allowed=only)
        accuracy = judge(outputs, None, metric, gates).accuracy
    bundle = write_bundle(out, **contents, calibration=gates, accuracy=accuracy)
    return Protected(**vars(bundle), report=accuracy, notes=() if log is None else log.notes)


def prepare(
    teacher: Teacher, queries: Queries, options: SearchOptions, callbacks: Callbacks
) -> tuple[TrainingContext, float]:
    """Have the model predict, and return the context for training and measuring candidates, and the
    seconds that the model takes for a query.

    If that would take too long, the model predicts for fewer queries, and a note says so.
    """
    device = choose_device(options.device)
    model = place(teacher.network(callbacks.on_progress), device)
    began = time.monotonic()
    some = Rows.of(queries.train[:PREDICTED], teacher.signature, device)
    predict(model, some)
    row_seconds = max(1e-9, (time.monotonic() - began) / len(some))
    queries = _affordable(queries, row_seconds, options, callbacks)
    data = distill(model, teacher, queries, device)
    callbacks.say(
        f"the model's predictions are {data.transform.kind}, judged by {data.metric}; it took "
        f"{time.monotonic() - began:.0f} s to predict for {len(queries.train):,} queries to learn "
        "from"
    )
    only = answered_classes(teacher.bundle, options.answer_only)
    if only and not data.transform.of_classes:
        raise UserError(
            f"predictions are {data.transform.kind}, not classes; leave out {spell('answer_only')}"
        )
    queried, level = teacher.describe(queries.train), options.agreement or AGREEMENT
    learned = teacher, model, queries, data, queried
    return TrainingContext(*learned, options.seed, level, only), row_seconds


def _affordable(
    queries: Queries, row_seconds: float, options: SearchOptions, callbacks: Callbacks
) -> Queries:
    """Return the part of the queries that the model can predict, and candidates be judged by, in
    time."""
    most = TEACHING * 60 * options.minutes / ((1 + queries.hflip) * row_seconds)
    most = max(FEWEST, int(most))
    if len(queries.train) > most:
        callbacks.say(
            f"the model takes too long to predict for all {len(queries.train):,} queries: {most:,} "
            "are used; give more minutes for more"
        )
    judging = ("validation", "validation_labels")
    limits = {"train": most, "calibration": CALIBRATING, "test": JUDGING}
    limits |= dict.fromkeys(judging, min(JUDGING, max(FEWEST, most // HELD_OUT)))
    some = {}
    for name, limit in limits.items():
        rows = getattr(queries, name)
        if rows is not None and len(rows) > limit:  # drawn, in their order
            drawn = np.random.default_rng(0).permutation(len(rows))[:limit]
            some[name] = rows[np.sort(drawn)]
    return replace(queries, **some)


def _finish(
    context: TrainingContext, found: Search, out: Path, options: SearchOptions
) -> Protected:
    """Measure, simulate, choose, calibrate and write."""
    late = PolicyChoice(Adaptive.name, {"differ": options.differ})
    count = int(min(MOST_QUERIES, max(LEAST_QUERIES, QUERIES * options.minutes)))
    shown = options.agreement
    if context.allowed and shown is None:
        shown = context.level
    exported = [each.exported() for each in found.finalists]
    base, finalists = measure(found.finalists, exported, context)
    service = Service({DEPLOYED: base / 1e3})
    scenario = Scenario.of(service, options, queries=count, seed=options.seed)

    def simulate(finalist: Finalist) -> None:
        service = finalist.service(gated=shown is not None)
        finalist.outcome = replace(scenario, service=service).outcome(late)

    able = [each for each in finalists if shown is None or each.covered] or finalists
    for each in able:
        simulate(each)
    best, named = preferred(able), [] if shown is None else [shown]
    place = finalists.index(best)
    candidate, made = found.finalists[place], exported[place]
    bundle, _ = write_trained(candidate, made, out, keep=False, named=named)
    gate = bundle.manifest.calibration["backup"]
    if shown is not None and (reached := gate.at_least(shown)) is not None:
        best.covered = reached.coverage
        simulate(best)
    assert context.level is not None
    report = Report(
        context.data.metric,
        context.data.transform.kind,
        context.level,
        base,
        [best, *(each for each in finalists if each is not best)],
        scenario.outcome(PolicyChoice(EqualResources.name)),
        scenario.outcome(PolicyChoice(Hedging.name, dispatch="latency-aware")),
        scenario.queries,
        scenario.rate,
        scenario.instances,
        found.dropped,
        found.interrupted,
    )
    if report.rival is not None:
        flags = f" --policy {report.rival}"
    else:
        flags = f" --differ {options.differ:g}"
        flags += "" if options.agreement is None else f" --agreement {options.agreement:g}"
    return Protected(**vars(bundle), report=report, flags=flags)


# Finalists are ranked by the test queries. The calibration queries are for the chosen one only, so
# the choice cannot favour one that happened to agree on those.


def measure(
    candidates: Sequence[Candidate], exported: Sequence[Exported], context: TrainingContext
) -> tuple[float, list[Finalist]]:
    """Measure trained candidates, and the backups `exported` from them, against the deployed model
    on the test queries.

    Returns the milliseconds of the deployed model, and each candidate's measurements.
    """
    deployed, queries, metric = context.teacher.bundle, context.queries, context.data.metric
    assert context.level is not None
    own = deployed.stored(deployed.manifest.deployed)
    backups = [made.backup for made in exported if made.backup is not None]
    models = [OnnxModel(each.onnx, signature=each.signature) for each in (own, *backups)]
    assert queries.test is not None
    sizes = commonest(queries.test, deployed.manifest.deployed.signature)
    base, *times = inference_times(models, sizes=sizes)
    predictions = deployed_predictor(deployed)(queries.test)
    found = list[Finalist]()
    right, agreement = labels_from(predictions, metric), agreement_for(metric, predictions)
    of_classes = METRICS[metric].kind == "classes"
    for candidate, backup, ms in zip(candidates, backups, times, strict=True):
        gave = predictor(load(backup.onnx, backup.signature))(queries.test)
        outputs, confidence = served(gave), suited(agreement.kind, gave)
        agreed = score(metric, outputs, right)
        interval = share_interval(agreed, len(right)) if of_classes else None
        covered = estimate_coverage(gave, predictions, metric, context.level, context.allowed)
        if confidence == "none":
            covered = float(covered >= context.level)
        sure = confidences(confidence, gave)
        doubts = fit_doubt(sure, agreement(outputs, predictions)).of(sure)
        spread = np.quantile(doubts, np.linspace(0, 1, QUANTILES)).tolist()
        name = candidate.name
        found.append(Finalist(name, ms, ms / base, agreed, interval, covered, spread))
    return base, found


def preferred(among: Sequence[Finalist]) -> Finalist:
    """Return the finalist with the lowest simulated p99; of those that differ by chance, the one
    that saves a late query most."""

    def p99(one: Finalist) -> float:
        assert one.outcome is not None
        return one.outcome.p99_ms

    lowest = min(map(p99, among))
    alike = (one for one in among if p99(one) <= ALIKE * lowest)
    return max(alike, key=lambda one: one.saving)
