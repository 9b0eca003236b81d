"""Which stand-ins to try for a deployed model F: one list, for the search and for who chooses one.

A candidate is a backup, which takes single queries, or the parity models of a code. Backups are
proposed around F's time divided by 1, 1.5, 2, 4, 10 and 30, parity models around F's time, for
k = 2, 3 and 4, so that a backup of the same cost says what the code adds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from parity_models.codes import Code, CodeSpec
from parity_models.errors import CodeError
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.network import Scalable
from parity_models.training.costs import WIDTHS, Costs

Shape = tuple[int, ...]

DIVISORS = (1, 4, 10, 2, 30, 1.5)
"""F's time is divided by these, the most telling first."""

SLACK = 1.02
"""The factor by which measurements of equally fast models differ."""

NARROWEST = 0.45
"""A network that takes less than this share of the wanted time is not proposed for it."""

CODES = (
    CodeSpec("stack", "separate", 2),
    CodeSpec("stack", "separate", 4),
    CodeSpec("stack", "separate", 3),
    CodeSpec("concatenation", "separate", 2),
    CodeSpec("sum", "subtraction", 2),
)
"""Codes that are tried, the most promising first."""


@dataclass(frozen=True)
class Candidate:
    """A stand-in to try: a network for single queries, or the networks of a code.

    `share` is the time that one run takes, as a share of F's: estimated, until it is measured.
    """

    network: str
    code: CodeSpec | None
    share: float

    @property
    def name(self) -> str:
        """What people are told."""
        if self.code is None:
            return f"backup {self.network}"
        code = f"{self.code.encoder}+{self.code.decoder} k={self.code.k}"
        return f"parity {self.network} {code}" + (f" r={self.code.r}" if self.code.r > 1 else "")

    @property
    def slug(self) -> str:
        """A name for files, the same for the same candidate."""
        code = "" if self.code is None else f"-{self.code}"
        kept = (each if each.isalnum() or each in "@.-" else "-" for each in self.network + code)
        return "".join(kept)


def ladder(query_shape: Shape) -> tuple[str, ...]:
    """The networks for queries of a shape, each slower than those before it, and more capable.

    All learn in minutes from some ten thousand queries.
    """
    return tuple(name for kind in NETWORKS for name in kind.ladder(query_shape))


def families(query_shape: Shape) -> tuple[str, ...]:
    """The same without widths, each once."""
    return tuple(dict.fromkeys(family(name) for name in ladder(query_shape)))


def propose(costs: Costs) -> list[Candidate]:
    """Candidates for the model that `costs` are relative to, the most promising first.

    Each is the widest network of its family that does not take longer than it may. The fastest
    network there is is always among them, even where it is slower than F.
    """
    backups = [list(_around(costs, 1 / divisor, None)) for divisor in DIVISORS]
    coded = [list(_around(costs, 1.0, code))[:1] for code in _codes(costs)]
    first = [each[0] for each in backups if each]
    others = [each[1] for each in backups if len(each) > 1]
    parity = [each[0] for each in coded if each]
    fastest = families(costs.query_shape)[0]
    least = Candidate(fastest, None, costs.share(fastest, None) or 1.0)
    found = [*first[:2], least, *parity[:1], *first[2:], *_in_turn(parity[1:], others)]
    return list({each.slug: each for each in found}.values())


def _in_turn(*lists: list[Candidate]) -> Iterator[Candidate]:
    for those in zip_longest(*lists):
        yield from (each for each in those if each is not None)


def _codes(costs: Costs) -> Iterator[CodeSpec]:
    for spec in CODES:
        try:
            Code(spec, costs.query_shape, costs.output_shape)
        except CodeError:
            continue
        yield spec


def _around(costs: Costs, share: float, code: CodeSpec | None) -> Iterator[Candidate]:
    """The widest network of each family that takes at most about `share` of F's time, the most
    capable family first; none of a family whose widest is far faster."""
    for name in reversed(families(costs.query_shape)):
        widths = WIDTHS if issubclass(NETWORKS.find(name), Scalable) else (1.0,)
        for width in reversed(widths):
            network = name if width == 1 else f"{name}@{width:g}"
            taken = costs.share(network, code)
            if taken is not None and NARROWEST * share < taken <= SLACK * share:
                yield Candidate(network, code, taken)
                break
