"""Parity models over named inputs: backups that were found, in k slots.

They have nothing more to learn, so that they take no time of the search.
"""

from collections.abc import Sequence

from parity_models.codes import CodeSpec
from parity_models.models.bundle import NewModel
from parity_models.protection.finalists import Entry
from parity_models.training.candidates import SLACK, Candidate
from parity_models.training.stacked import STACKED, check_stacked
from parity_models.training.subject import Subject

SLOTS = (2, 3, 4)
"""Queries in the groups of the codes that are tried."""


def in_slots(found: Sequence[Entry], subject: Subject) -> tuple[list[Entry], dict[str, str]]:
    """For each k the parity model of the best backup `found` of which k runs take no longer than
    the deployed model; and by name, why there is none.

    Those of models that take one float32 input are candidates of the search: here are none.
    """
    if subject.plain:
        return [], {}
    entries, refused = [], {}
    backups = [each for each in found if each.candidate.code is None]
    for k in SLOTS:
        spec = CodeSpec("stack", "separate", k, encoder_options=STACKED)
        fast = [each for each in backups if k * each.candidate.share <= SLACK]
        if not backups:
            refused[f"parity {spec.encoder}+{spec.decoder} k={k}"] = "no backup was found"
            continue
        if not fast:
            fastest = min((each.candidate for each in backups), key=lambda each: each.share)
            refused[f"parity {spec.encoder}+{spec.decoder} k={k}"] = (
                f"{k} runs of the fastest backup that was found, {fastest.network}, "
                f"take {k * fastest.share:.2f} of the model's time"
            )
            continue
        best = max(fast, key=lambda each: each.trainee.score)
        assert isinstance(best.made, NewModel)
        made = best.trainee.in_slots(check_stacked(spec, subject), best.made)
        candidate = Candidate(best.candidate.network, spec, k * best.candidate.share)
        entries.append(Entry(candidate, made, best.trainee))
    return entries, refused
