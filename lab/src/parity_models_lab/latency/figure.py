"""Latency figures as data: settings and policies, read from files that people can edit."""

from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import product
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr, replace

from parity_models.documents import as_struct
from parity_models.errors import UserError
from parity_models.options import Value
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.latency.trial import Setting
from parity_models_lab.results import load_toml, names_in

FILES = resources.files("parity_models_lab.latency") / "experiments"
FIGURES = names_in(FILES)
"""The figures that come with the package."""

Values = dict[str, Annotated[tuple[Value, ...], Meta(min_length=1, max_length=100)]]
Queries = Annotated[int, Meta(ge=100, le=10_000_000)]


class Series(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a figure: a policy, and what of the setting is its own (such as a decoder).

    `policy` is the policy's `name`, its options and those of a `dispatch` rule; times in seconds.
    `tuned` are options with values to choose from: at each point, anew, the policy has those with
    which simulations have the lowest latency `tuned_by`; where it is run for real it has them as
    well. `swept` are options, or fields of the setting, with values that make a series of each
    combination. `real`: whether it is run for real, too.
    """

    label: str
    policy: dict[str, Value]
    setting: dict[str, Any] = {}
    real: bool = True
    tuned: Values = {}
    tuned_by: Literal["p99", "p99.9"] = "p99.9"
    swept: Values = {}

    @property
    def candidates(self) -> list[PolicyChoice]:
        """The policy with each combination of the `tuned` options; itself where none are. Raises
        UserError for an impossible one."""
        if "name" not in self.policy:
            raise UserError(f"the policy of the series {self.label!r} has no name")
        made = []
        for options in _combinations(self.tuned):
            given = self.policy | options
            name, rule = str(given.pop("name")), given.pop("dispatch", None)
            made.append(PolicyChoice(name, given, None if rule is None else str(rule)))
        return made

    def swept_out(self) -> Iterator["Series"]:
        """Yield a series for each combination of swept values; itself where nothing is swept."""
        for changes in _combinations(self.swept):
            said = ", ".join(f"{name}={value}" for name, value in changes.items())
            fields = {n: v for n, v in changes.items() if n in Setting.__struct_fields__}
            yield replace(
                self,
                label=f"{self.label} ({said})" if said else self.label,
                policy=self.policy | {n: v for n, v in changes.items() if n not in fields},
                setting=self.setting | fields,
                swept={},
            )


def _combinations(values: Mapping[str, tuple[Value, ...]]) -> Iterator[dict[str, Value]]:
    for each in product(*values.values()):
        yield dict(zip(values, each, strict=True))


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policies of `series` over the `points` of `axis`.

    A point names what it changes in `setting`. The axis is a field of Setting; or it is not, and
    points say in words what they are on it. `real` are the points that are run for real, by
    position; all are simulated. `real_queries` and `simulated_queries` are the lengths of runs, and
    `warm_up` the number of queries that come first and are not counted. `apart`: run only where it
    is named. Swept series become one each. Raises UserError for what cannot be run.
    """

    title: str
    axis: str
    points: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]
    series: Annotated[tuple[Series, ...], Meta(min_length=1)]
    setting: dict[str, Any] = {}
    real: tuple[int, ...] = (0,)
    real_queries: Queries = 2_000
    simulated_queries: Queries = 10_000
    warm_up: Annotated[int, Meta(ge=0, le=10_000_000)] = 500
    apart: bool = False

    def __post_init__(self) -> None:
        force_setattr(self, "series", tuple(s for one in self.series for s in one.swept_out()))
        for index in self.real:
            if not 0 <= index < len(self.points):
                raise UserError(f"real names point {index}; there are {len(self.points)}, from 0")
        for index, point in enumerate(self.points):
            if self.axis not in point:
                raise UserError(f"point {index} does not say what {self.axis} is there")
            if not isinstance(point[self.axis], str | int | float):
                raise UserError(f"{self.axis} is neither a word nor a number at point {index}")
            for series in self.series:
                _ = self.at(index, series).code, series.candidates
        if len({series.label for series in self.series}) < len(self.series):
            raise UserError("two series have one label: tables could not tell them apart")

    def at(self, point: int, series: Series) -> Setting:
        """Return the setting of a series at a point."""
        changes = self.setting | self.points[point] | series.setting
        if self.in_words:
            del changes[self.axis]
        return as_struct(changes, Setting)

    @property
    def in_words(self) -> bool:
        """True if the points are words, not numbers."""
        return self.axis not in Setting.__struct_fields__

    @property
    def labels(self) -> list[str]:
        """The names of the points."""
        given = (point[self.axis] for point in self.points)
        return [each if isinstance(each, str) else f"{each:g}" for each in given]


def load_figure(name: str) -> Figure:
    """Read a figure: one that comes with the package, by name, or any file. Raises UserError if
    there is none or it is not a figure."""
    return load_toml(name, FILES, Figure, "lab/notes/latency.md")
