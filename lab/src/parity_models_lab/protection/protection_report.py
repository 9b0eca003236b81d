"""The page on what `parm protect` promises: targets, then each model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from parity_models.protection.frontier_table import said_of_cores
from parity_models.protection.in_place import InPlace
from parity_models.simulation.course import SHARES
from parity_models_lab.protection.results import Found, Latencies, Proof, Tails
from parity_models_lab.protection.targets import CLOSE, off, on_time, stand_ins
from parity_models_lab.report_page import TRAINING, provenance, targets_table

PERCENTILES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}

EXPLAINED = f"""\
`parm protect` is run as a process and timed. What it recommends is then served, as by `parm serve`:
with the instances, the batches, the gates and the urgency that were simulated, under the same
arrivals, while the same contention delays the same workers at the same times. The model and its
stand-ins really run, on the cores that are here, and clients ask over HTTP. *off* is how far a
simulated latency is from the real one; the tail's is to be {CLOSE:.0%} at most. What serving
takes besides the model, in workers, over HTTP and in clients, `parm protect` measures itself, in a
calm run of some seconds, without contention and without redundancy.

The models learned Fashion-MNIST here. *of F* is a stand-in's time for one query as a share of the
model's, *agrees* how often it says what the model says, *answers* the share of queries that the
gate lets it answer, A_a and A_d the accuracies of model and stand-in."""


def write_report(path: Path, proofs: Sequence[Proof], command: str) -> None:
    """Write the page to `path`, which was made by `command`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_report(proofs, command)) + "\n", encoding="utf-8")


def _report(proofs: Sequence[Proof], command: str) -> Iterator[str]:
    yield "# From a model to its stand-in, held to its promises\n"
    yield from provenance(command, TRAINING, (proof.date for proof in proofs))
    yield f"{EXPLAINED}\n"
    judged = [target for proof in proofs for each in (on_time, stand_ins) for target in each(proof)]
    yield from targets_table(judged)
    for proof in proofs:
        yield from _proof(proof)


def _proof(proof: Proof) -> Iterator[str]:
    search, found = proof.search, proof.search.found
    before, after = proof.load
    yield f"\n## {proof.subject}\n"
    yield f"`parm protect --minutes {search.minutes:g} --agreement {proof.agreement:g}` took"
    yield f"{search.seconds:.0f} s. The machine's load was {before:.1f} before, and {after:.1f}"
    yield "afterwards."
    if found is None:
        yield "It found no stand-in."
        return
    own = "" if found.model_accuracy is None else f" A_a is {found.model_accuracy:.1%}."
    times = " and ".join(f"{ms:.3g} ms for {n}" for n, ms in found.model_ms.items())
    yield f"The model takes {times} at once.{own} Measured with {found.test_queries:,} queries.\n"
    yield from _stand_ins(found)
    if proof.tails is not None:
        yield from _tails(found, proof.tails)


def _stand_ins(found: Found) -> Iterator[str]:
    yield "| stand-in | of F | agrees | answers | A_d | recommended |"
    yield "|---" * 6 + "|"
    chosen = found.recommended.split(" + ")
    for one in sorted(found.finalists, key=lambda each: each.share):
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.1%}"
        yield (
            f"| {one.name} | {one.share:.2f} | {one.agreement:.1%} | {one.covered:.1%} | "
            f"{accuracy} | {'yes' if one.name in chosen else ''} |"
        )


def _tails(found: Found, tails: Tails) -> Iterator[str]:
    scene = found.scene
    counted = max(real.queries for real in tails.runs.values())
    kinds = sum((Counter(real.failures) for real in tails.runs.values()), Counter[str]())
    told = "".join(f", {number:,} {kind}" for kind, number in kinds.items())
    yield f"\n{scene.instances} instances, {scene.rate:.0f} queries a second, batches of up to"
    yield f"{scene.max_batch}; {scene.queries:,} queries simulated, {counted:,} real;"
    yield f"{kinds.total():,} failed{told}. {_besides(found.served)} Latencies in ms.\n"
    headings = " | ".join(f"{of} real | simulated | off" for of in PERCENTILES)
    yield f"| plan | {headings} | stood in, real | simulated |"
    yield "|---" * (3 * len(PERCENTILES) + 3) + "|"
    for name, real in tails.runs.items():
        plan = found.plan(name)
        stood_in = f"{real.stood_in:.1%} | {plan.stood_in:.1%}"
        yield f"| {name} | {_compared(plan, real)} | {stood_in} |"


def _besides(served: InPlace | None) -> str:
    if served is None:
        return "There was no time to see what serving takes besides the model."
    outside = np.interp((0.5, 0.99), SHARES, served.outside)
    shared = f" On {said_of_cores(served)}." if served.cores else ""
    return (
        f"In a calm server units held an instance for {served.held:.2f} ms besides the model's\n"
        f"time, and answers took {outside[0]:.2f} ms more at the median, {outside[1]:.2f} at p99."
        f"{shared}"
    )


def _compared(simulated: Latencies, real: Latencies) -> str:
    return " | ".join(
        f"{getattr(real, field):.2f} | {getattr(simulated, field):.2f} | "
        f"{off(simulated, real, field):+.0%}"
        for field in PERCENTILES.values()
    )
