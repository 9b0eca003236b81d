"""Latency experiments: what one figure compares, read from a file that people can edit."""

from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import product
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from parity_models.codes.code import check_spec
from parity_models.documents import as_struct
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice, choose
from parity_models_lab.documents import load_toml, names_in
from parity_models_lab.latency.setting import Setting

FILES = resources.files("parity_models_lab.latency") / "experiments"


Value = bool | int | float | str
"""The values of an option."""


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    tuned: dict[str, Annotated[tuple[Value, ...], Meta(min_length=1, max_length=100)]] = {}
    tuned_by: Literal["p99", "p99.9"] = "p99.9"
    swept: dict[str, Annotated[tuple[Value, ...], Meta(min_length=1, max_length=100)]] = {}

    @property
    def choice(self) -> PolicyChoice:
        """The policy, checked; untuned. Raises UserError for an impossible one."""
        return self._with({})

    @property
    def candidates(self) -> list[PolicyChoice]:
        """The policy with each of the options that are `tuned`; itself where none are."""
        return [self._with(options) for options in _combinations(self.tuned)]

    def swept_out(self) -> Iterator["Series"]:
        """Yield a series for each combination of swept values; itself where nothing is swept."""
        for changes in _combinations(self.swept):
            said = ", ".join(f"{name}={value}" for name, value in changes.items())
            fields = {n: v for n, v in changes.items() if n in Setting.__struct_fields__}
            yield msgspec.structs.replace(
                self,
                label=f"{self.label} ({said})" if said else self.label,
                policy=self.policy | {n: v for n, v in changes.items() if n not in fields},
                setting=self.setting | fields,
                swept={},
            )

    def _with(self, options: dict[str, Value]) -> PolicyChoice:
        given = self.policy | options
        if "name" not in given:
            raise UserError(f"the policy of the series {self.label!r} has no name")
        return choose(str(given.pop("name")), given)


def _combinations(values: Mapping[str, tuple[Value, ...]]) -> Iterator[dict[str, Value]]:
    for each in product(*values.values()):
        yield dict(zip(values, each, strict=True))


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure: the policies of `series` over the `points` of `axis`.

    A point names what it changes in `setting`. The axis is a field of Setting; or it is not, and
    points say in words what they are on it. `real` are the points that are run for real, by
    position; all are simulated. `real_queries` and `simulated_queries` are the lengths of runs, and
    `warm_up` the number of queries that come first and are not counted. `apart`: not among `all`
    figures.
    """

    title: str
    axis: str
    points: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]
    setting: dict[str, Any] = {}
    real: tuple[int, ...] = (0,)
    real_queries: Annotated[int, Meta(ge=100, le=10_000_000)] | None = None
    simulated_queries: Annotated[int, Meta(ge=100, le=10_000_000)] | None = None
    warm_up: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    apart: bool = False

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

    @property
    def xs(self) -> list[float]:
        """The points' places on the axis."""
        if self.in_words:
            return [float(index) for index in range(len(self.points))]
        return [float(point[self.axis]) for point in self.points]

    def check(self) -> None:
        """Raise ValueError or UserError for a setting that cannot be."""
        if not self.points or not self.series:
            raise UserError("an experiment needs a point and a series at least")
        for index in self.real:
            if not 0 <= index < len(self.points):
                raise UserError(f"real names point {index}; there are {len(self.points)}, from 0")
        for index, point in enumerate(self.points):
            if self.axis not in point:
                raise UserError(f"point {index} does not say what {self.axis} is there")
            if not isinstance(point[self.axis], str if self.in_words else int | float):
                raise UserError(
                    f"{self.axis} is not {'in words' if self.in_words else 'a number'} at point "
                    f"{index}; a setting varies by numbers, and what is not a setting in words"
                )
            for series in self.series:
                check_spec(self.at(index, series).code)
        for series in self.series:
            _ = series.choice, series.candidates
        if len({series.label for series in self.series}) < len(self.series):
            raise UserError("two series have one label: tables could not tell them apart")


def experiment_names() -> list[str]:
    """Return the experiments that come with the package."""
    return names_in(FILES)


def load_experiment(name: str) -> Experiment:
    """Read an experiment: one that comes with the package, by name, or any file.

    Raises UserError if there is none or it is not an experiment.
    """
    return load_toml(name, FILES, Experiment, _checked, "figure", "lab/notes/latency.md")


def _checked(experiment: Experiment) -> Experiment:
    series = tuple(each for one in experiment.series for each in one.swept_out())
    experiment = msgspec.structs.replace(experiment, series=series)
    experiment.check()
    return experiment


def figures_of(names: list[str]) -> list[str]:
    """Return the experiments of these names, each once; `all` is every one that is not apart."""
    everyone = [name for name in experiment_names() if not load_experiment(name).apart]
    listed = (other for name in names for other in (everyone if name == "all" else [name]))
    return list(dict.fromkeys(listed))
