"""From a deployed model and unlabelled queries to a bundle with the best stand-ins, in some time.

Measure the model; propose candidates; train them by successive halving; calibrate and measure what
is left; simulate it under the user's load; recommend; write.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from parity_models.models.bundle import Bundle, InferenceTimes
from parity_models.models.inference_time import batch_time
from parity_models.models.manifest import BATCH
from parity_models.models.onnx_model import OnnxModel
from parity_models.protection.advice import Advice, able, advise, two_backups, two_together
from parity_models.protection.audience import Audience
from parity_models.protection.finalists import Entry, Finalist, Measured, measure
from parity_models.protection.in_place import InPlace, in_place
from parity_models.protection.preparing import Prepared, prepare
from parity_models.protection.simulated import Plan, Scene, Simulations, Times, offered
from parity_models.protection.slots import SLOTS, in_slots
from parity_models.protection.wishes import Wishes
from parity_models.protection.written import write_protected
from parity_models.tasks.output_kind import OutputKind
from parity_models.training.candidates import Candidate, families, propose
from parity_models.training.costs import Costs
from parity_models.training.held_out import Queries
from parity_models.training.named_candidates import propose_named
from parity_models.training.run import check_place
from parity_models.training.search import FINALISTS, Found, Search
from parity_models.training.search_state import Proposed, Searched, SearchFolder

FINISHING = 22.0
"""Seconds for what comes after the search, at least, besides running the finalists; ..."""

MOST_FINISHING = 0.4
"""... of all at most this share."""

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

WRITING = 3.0
"""Seconds of these for what comes after the simulations; ..."""

MOST_WRITING = 0.3
"""... at most this share."""


@dataclass(frozen=True)
class Protected:
    """What came of it: the bundle that was written, and all that was measured on the way.

    `base` are the deployed model's milliseconds by batch size, `served` what it takes besides where
    it is served, if there was time to see; `accuracy` is its own where there
    are labels, `plans` all that were simulated, each in the same `scene`. `interrupted`: the search
    was cut off, and can be resumed.
    """

    bundle: Bundle
    metric: str
    output_kind: OutputKind
    base: dict[int, float]
    served: InPlace | None
    accuracy: float | None
    finalists: list[Finalist]
    plans: list[Plan]
    scene: Scene
    advice: Advice
    dropped: dict[str, str]
    test_queries: int
    interrupted: bool


def protect_model(
    deployed: Bundle,
    queries: Queries,
    out: Path,
    wishes: Wishes | None = None,
    audience: Audience | None = None,
    began: float | None = None,
) -> Protected:
    """Find the best stand-in for the model of `deployed`, or two that are better together (two
    backups, or a parity model and a backup), and write a bundle with them to `out`.

    Beside it, in the folder OUT.protect, is what is needed to resume. Ctrl-C ends the search, and
    the best so far is written. Raises DataError for queries that do not fit, ModelError for a model
    that cannot be deployed, TrainingError for a search that cannot be resumed, BundleError if `out`
    is no place for a bundle, and UserError, which names the nearest, if no stand-in keeps within
    the wishes; nothing is written then. The time counts from `began` (of time.monotonic), by
    default from now.
    """
    began = time.monotonic() if began is None else began
    wishes, audience, out = wishes or Wishes(), audience or Audience(), Path(out).resolve()
    check_place(out)
    wishes.plan()  # what cannot be read is said before anything is trained
    total = 60 * wishes.minutes
    prepared = prepare(deployed, queries, wishes, audience)
    folder = SearchFolder(out.with_name(f"{out.name}.protect"))
    prepared_at = time.monotonic()
    searched = _searched(deployed, prepared, folder, wishes.resume)
    search = Search(prepared.teaching, searched, folder, audience.searching)
    now, end = time.monotonic(), began + total
    left = end - _finishing(total, now - prepared_at, prepared) - now
    found = search.run(max(left, LEAST_SEARCHING * total))
    audience.searched()
    finished = _finish(deployed, prepared, found, out, wishes, audience, end)
    if not found.interrupted:
        folder.clear()
    return finished


def _finishing(total: float, proposing: float, prepared: Prepared) -> float:
    """Seconds of the `total` for what comes after the search, where candidates were proposed in so
    many."""
    # Hardly a finalist is slower than the model. The accuracies take as long as one of them more.
    coded = 0 if prepared.teaching.subject.plain else len(SLOTS)
    running = (FINALISTS + coded + 1) * prepared.measuring
    serving = _serving(total)
    serving += STARTING if serving else 0.0
    return min(max(FINISHING, PROPOSALS * proposing) + running + serving, MOST_FINISHING * total)


def _serving(total: float) -> float:
    """Seconds of the `total` for the calm run of a server; 0: none."""
    share, least, most = SERVED
    seconds = min(most, share * total)
    return seconds if seconds >= least else 0.0


def _searched(deployed: Bundle, prepared: Prepared, folder: SearchFolder, resume: bool) -> Searched:
    """The candidates, and what is known of them: of a search that was cut off, or new ones."""
    if resume:
        return folder.read(prepared.options)
    candidates, deployed_ms = _proposed(deployed, prepared)
    proposed = tuple(Proposed(each.network, each.code, each.share) for each in candidates)
    searched = Searched(prepared.options, proposed, deployed_ms)
    folder.begin(searched)
    return searched


def _proposed(deployed: Bundle, prepared: Prepared) -> tuple[list[Candidate], float]:
    """What is to be tried, and how many milliseconds the deployed model takes."""
    teaching = prepared.teaching
    if not teaching.subject.plain:
        return propose_named(deployed, teaching.subject, teaching.queried, prepared.measured.sizes)
    shape = deployed.manifest.deployed.input.shape
    costs = Costs(OnnxModel(deployed.deployed_path), families(shape))
    return propose(costs), costs.deployed_ms


def _served(
    deployed: Bundle,
    base: Times,
    queries: Measured,
    wishes: Wishes,
    audience: Audience,
    left: float,
) -> InPlace | None:
    """What the model takes where it is served, unless only so many seconds are `left` that the
    simulations would have too few."""
    seconds = _serving(60 * wishes.minutes)
    if not seconds or left < 2 * (seconds + STARTING):
        return None
    rate = offered(wishes, base)
    return in_place(deployed, queries.sizes, base[1], rate, wishes.instances, seconds, audience.say)


def _finish(
    deployed: Bundle,
    prepared: Prepared,
    found: Found,
    out: Path,
    wishes: Wishes,
    audience: Audience,
    end: float,
) -> Protected:
    """Measure, simulate, recommend and write."""
    queries: Measured = prepared.measured
    batches = sorted({1, wishes.max_batch or BATCH})
    with TemporaryDirectory() as temporary:
        entries = [Entry(each.candidate, each.exported(), each) for each in found.finalists]
        coded, refused = in_slots(entries, prepared.teaching.subject)
        base, finalists = measure(
            [*entries, *coded], deployed, queries, wishes.agreement, batches, Path(temporary)
        )
    own = deployed.stored(deployed.manifest.deployed)
    of_batch = base[BATCH] if BATCH in base else batch_time(own, queries.sizes)
    times = InferenceTimes(base[1], None, (), of_batch)
    capable = able(finalists, wishes)
    in_service = _served(deployed, base, queries, wishes, audience, end - time.monotonic())
    left = max(0.0, end - time.monotonic())
    # Each by itself, two together of either sort, and hedging.
    count = REPEATED * (len(capable) + 2) + 1
    left -= min(WRITING, MOST_WRITING * left)
    max_batch = wishes.max_batch or times.batch
    simulations = Simulations(wishes, base, left, count, max_batch, in_service)
    others = [simulations.without, simulations.hedging()]
    tried = [simulations.with_stand_ins(each) for each in capable]
    alone = [each[-1] for each in tried]
    for company in (two_together(alone, wishes), two_backups(alone, wishes)):
        if company:
            tried.append(simulations.with_stand_ins(*company))
    plans, at_full = [each[-1] for each in tried], [each[0] for each in tried]
    advice = advise(plans, at_full, others, wishes)
    bundle = write_protected(deployed, prepared, advice.plan.finalists, times, out)
    return Protected(
        bundle,
        queries.metric,
        prepared.teaching.lessons.output_kind,
        base,
        in_service,
        queries.accuracy,
        finalists,
        [*others, *plans],
        simulations.scene,
        advice,
        found.dropped | refused,
        len(queries.test),
        found.interrupted,
    )
