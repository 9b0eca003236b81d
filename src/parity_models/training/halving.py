"""Which candidates go on being trained, and why the others do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from parity_models.training.candidates import SLACK

MARGIN = 0.005
"""The difference of scores that chance explains once candidates are trained to the end."""

SURELY = 0.9
"""A candidate that is estimated to take at most this share of F's time is surely not slower than F:
networks of microseconds were measured at up to a tenth more than estimated."""


class Judged(Protocol):
    """A candidate after some training: whether it takes several queries at once, its time as a
    share of F's, score and worth."""

    @property
    def name(self) -> str: ...
    @property
    def coded(self) -> bool: ...
    @property
    def share(self) -> float: ...
    @property
    def score(self) -> float: ...
    @property
    def worth(self) -> float: ...


@dataclass(frozen=True)
class Kept:
    """The `places` of candidates that go on; `dropped` says of the others, by place, why not."""

    places: tuple[int, ...]
    dropped: dict[int, str]


def keep(judged: Sequence[Judged], most: int, margin: float = MARGIN, least: int = 1) -> Kept:
    """Choose at most `most` of the candidates, 2 or more, to be trained further.

    A candidate is dropped if another is no slower and scores better by more than `margin`. If fewer
    than `least` are left, the best of the dropped ones come back: they may learn more slowly. Of
    those left, the best backup and the best parity model that are not slower than F stay, and then
    those that are worth most. If there is room for two or more of these, the best backup that is
    surely not slower is one of them.
    """
    dropped: dict[int, str] = {}
    for place, one in enumerate(judged):
        better = [
            other
            for other in judged
            if other.share <= one.share and other.score > one.score + margin
        ]
        if better:
            best = max(better, key=lambda each: each.score)
            dropped[place] = (
                f"{best.name} is no slower ({best.share:.2f} of the model's time, not "
                f"{one.share:.2f}) and scores {best.score:.1%}, not {one.score:.1%}"
            )
    slower = sorted(dropped, key=lambda place: -judged[place].score)
    for place in slower[: max(0, least - (len(judged) - len(dropped)))]:
        del dropped[place]
    left = [place for place in range(len(judged)) if place not in dropped]
    fast = [place for place in left if judged[place].share <= SLACK] or left
    anchors = {
        max(those, key=lambda place: judged[place].score)
        for coded in (False, True)
        if (those := [place for place in fast if judged[place].coded == coded])
    }
    ranked = sorted(left, key=lambda place: (place not in anchors, -judged[place].worth))
    backups = [place for place in fast if not judged[place].coded]
    surely = [place for place in backups if judged[place].share <= SURELY]
    best_of_them = max(surely, key=lambda place: judged[place].score, default=None)
    room = len(anchors) + 1
    if best_of_them in ranked[room:]:
        ranked.remove(best_of_them)
        ranked.insert(room, best_of_them)
    for place in ranked[most:]:
        one = judged[place]
        dropped[place] = (
            f"{most} others are worth more: it saves {one.worth:.2f} of the model's time for a "
            f"late query (score {one.score:.1%}, {one.share:.2f} of the time)"
        )
    return Kept(tuple(sorted(ranked[:most])), dropped)
