"""What `parm protect` promises, held against what it did."""

from collections.abc import Iterator

from parity_models.training.candidates import SLACK
from parity_models_lab.protection.results import Latencies, Proof
from parity_models_lab.target import Target

PUNCTUAL = 0.1
"""How far it may be from its minutes, as a share of them."""

CLOSE = 0.15
"""How far a simulated percentile may be from the real one, as a share of that."""

NEAR = 0.01
"""How much less accurate a stand-in that is no slower than the model may be."""

TENTH = 0.1
"""The share of the model's time of a stand-in that is to be found, whatever it loses."""

TAIL = {"p99": "p99_ms", "p99.9": "p999_ms"}


def off(simulated: Latencies, real: Latencies, field: str) -> float:
    """How far a simulated latency is from the real one, as a share of that."""
    return float(getattr(simulated, field) / getattr(real, field) - 1)


def on_time(proof: Proof) -> Iterator[Target]:
    """It takes its minutes, and what it simulates comes true."""
    search, found, name = proof.search, proof.search.found, _of(proof)
    wanted = 60 * search.minutes
    yield Target(
        f"{name}: `parm protect --minutes {search.minutes:g}` takes",
        f"{wanted:.0f} s ± {PUNCTUAL:.0%}",
        f"{search.seconds:.0f} s" + ("" if found else ", without a stand-in"),
        found is not None and abs(search.seconds / wanted - 1) <= PUNCTUAL,
    )
    if found is None or found.model_accuracy is not None:  # those with labels are not run
        return
    plan = found.plan(found.recommended)
    for percentile, field in TAIL.items():
        what = f"{name}: {percentile} of what is recommended, simulated, is that of a real run"
        if proof.tails is None:
            yield Target(what, f"± {CLOSE:.0%}", "not run", None)
            continue
        real = proof.tails.runs[plan.name]
        far = off(plan, real, field)
        met = abs(far) <= CLOSE and not real.failed
        yield Target(what, f"± {CLOSE:.0%}", f"{far:+.0%}", met)


def stand_ins(proof: Proof) -> Iterator[Target]:
    """It finds one that is as good as the model in no more time, and one that is much faster."""
    found, name = proof.search.found, _of(proof)
    if found is None:
        return
    own = found.model_accuracy
    known = {each: each.accuracy for each in found.finalists if each.accuracy is not None}
    if own is None or not known:
        return
    best = max(
        (each for each in known if each.share <= SLACK), key=lambda one: known[one], default=None
    )
    yield Target(
        f"{name}: A_d of a stand-in that is no slower than the model",
        f"at least {own - NEAR:.1%} (A_a - {NEAR:.1%})",
        "none is as fast" if best is None else f"{known[best]:.1%} ({best.name})",
        best is not None and known[best] >= own - NEAR,
    )
    fastest = min(known, key=lambda one: one.share)
    yield Target(
        f"{name}: a stand-in of a tenth of the model's time, its loss told",
        f"at most {TENTH:.0%} of the time",
        f"{fastest.share:.0%}, A_d {known[fastest]:.1%} ({fastest.name})",
        fastest.share <= SLACK * TENTH,
    )


def _of(proof: Proof) -> str:
    found = proof.search.found
    return proof.subject + (f", {found.model_ms['1']:.2g} ms" if found else "")
