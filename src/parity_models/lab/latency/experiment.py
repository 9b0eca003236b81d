"""Latency experiments: what one figure compares, read from a file that people can edit."""

import os
from collections import Counter
from enum import StrEnum
from importlib import resources
from math import ceil, exp
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.faults import (
    Constant,
    Distribution,
    Duration,
    Empirical,
    Exponential,
    FaultPlan,
    Kill,
    LogNormal,
    Neighbours,
    Pauses,
    Shuffles,
    Slowdowns,
    Spell,
    Uniform,
)
from parity_models.lab.contention.plan import Contention, Hogs, Network, Tenant
from parity_models.scheduling import BACKUP
from parity_models.scheduling.choice import PolicyChoice, choose

FILES = resources.files("parity_models.lab.latency") / "experiments"
MAX_BYTES = 1 << 20
"""A longer file is not read."""

Count = Annotated[int, Meta(ge=1, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one run meets, whatever the policy. Times in seconds.

    `instances` run the deployed model; k, r and these give the extra instances that all
    policies but none have: instances * r / k, rounded up. The offered load is `rate` in queries
    per second, or, where that is None, `load` as a share of what `instances` alone can carry.
    `service` is the emulated service time of a batch of up to `max_batch` queries,
    `backup_service` that of an approximate backup; it is waited for, or with `computing` computed
    for.

    Contention, of which there may be several kinds; 0 is none:
    `shuffles` background transfers run at all times. Where they are drawn, each lasts for a drawn
    `transfer` and delays a unit of the two instances it runs between by a drawn `delay`.
    `tenants` instances of another tenant are each beside one of ours; theirs is a load of
    `tenant_rate` queries a second in all, each of `tenant_service`.
    `hogs` processes on every core take what they can get of it, in spells of `hog_spell` on
    average, `hog_gap` apart; instances are pinned to cores.
    Each instance is stopped for a drawn `pause` every `pause_every` seconds on average.
    One instance, drawn at random, is killed every `kill_every` seconds.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    r: Annotated[int, Meta(ge=1, le=3)] = 1
    decoder: str = "separate"
    rate: Rate | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Distribution = LogNormal(0.025, 0.05)
    backup_service: Distribution = LogNormal(0.0125, 0.05)
    computing: bool = False
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    transfer: Distribution = Uniform(0.7, 1.4)
    delay: Distribution = Exponential(0.02)
    tenants: Annotated[int, Meta(ge=0, le=1000)] = 0
    tenant_rate: Annotated[float, Meta(gt=0, le=10_000)] = 60.0
    tenant_service: Distribution = Constant(0.02)
    hogs: Annotated[int, Meta(ge=0, le=100)] = 0
    hog_gap: Duration = 2.0
    hog_spell: Spell = 1.0
    pause_every: Duration = 0.0
    pause: Distribution = Exponential(0.1)
    kill_every: Duration = 0.0

    def __post_init__(self) -> None:
        if self.k > 0 and self.tenants > max(0, self.all_instances):
            raise ValueError(
                f"{self.tenants} instances of another tenant are to be each beside another one, "
                f"but there are {self.all_instances}"
            )
        if _mean(self.service) <= 0:
            raise ValueError("units take no time: give a service time above 0")
        for name, least in (("pause_every", 0.001), ("kill_every", 0.1)):
            if 0 < getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)} s; give {least} s or more, or 0 for never"
                )

    @property
    def parity_instances(self) -> int:
        return ceil(self.instances * self.r / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.parity_instances

    @property
    def code(self) -> CodeSpec:
        encoder = "stack" if self.decoder == "separate" else "sum"
        return CodeSpec(encoder, self.decoder, self.k, self.r)

    @property
    def queries_per_second(self) -> float:
        if self.rate is not None:
            return self.rate
        return self.load * self.instances * self.max_batch / _mean(self.service)

    @property
    def carried(self) -> float:
        """The offered load as a share of what `instances` alone can carry."""
        return self.queries_per_second * _mean(self.service) / (self.instances * self.max_batch)

    def faults(self, seed: int, seconds: float) -> FaultPlan:
        """What real and simulated workers obey alike: service times, and kills for `seconds`."""
        rng = Random(f"{seed}/kills")
        kills = ceil(seconds / self.kill_every) if self.kill_every else 0
        return FaultPlan(
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            computing=self.computing,
            kills=tuple(
                Kill(rng.randrange(self.all_instances), self.kill_every * (i + 1))
                for i in range(kills)
            ),
        )

    def drawn_shuffles(self) -> Shuffles | None:
        """Background transfers as delays, where there are no links."""
        if not self.shuffles:
            return None
        return Shuffles(self.shuffles, self.all_instances, self.transfer, self.delay)

    def contention(self, seed: int, *, links: bool) -> Contention | None:
        """The contention that is made outside of real workers; on the network only if `links`."""
        plan = Contention(
            seed=seed,
            network=Network(shuffles=self.shuffles) if links and self.shuffles else None,
            hogs=self._hogs(tuple(sorted(os.sched_getaffinity(0)))) if self.hogs else None,
            pauses=Pauses(self.pause_every, self.pause) if self.pause_every else None,
            tenant=self._tenant if self.tenants else None,
        )
        return None if plan == Contention(seed=seed) else plan

    def simulated_faults(self, seed: int, seconds: float) -> FaultPlan:
        """`faults`, and all contention as the plan of a simulated run.

        A hog leaves a unit its share of the core only, so that one takes as much longer.
        """
        slowdowns = neighbours = None
        if self.hogs:
            longer = Constant(self.hogs * _mean(self.service))
            slowdowns = Slowdowns(self.hog_gap, self.hog_spell, longer)
        if self.tenants:
            workers = Contention(seed=seed, tenant=self._tenant).shared(self.all_instances)
            rate = self.tenant_rate / self.tenants
            neighbours = Neighbours(rate, self.tenant_service, tuple(workers))
        return msgspec.structs.replace(
            self.faults(seed, seconds),
            shuffles=self.drawn_shuffles(),
            slowdowns=slowdowns,
            neighbours=neighbours,
            pauses=Pauses(self.pause_every, self.pause) if self.pause_every else None,
        )

    @property
    def _tenant(self) -> Tenant:
        return Tenant(self.tenants, self.tenant_rate, self.tenant_service)

    def _hogs(self, cores: tuple[int, ...]) -> Hogs:
        return Hogs(cores, self.hog_gap, self.hog_spell, self.hogs)


class Picture(StrEnum):
    """What an experiment's picture shows."""

    AXIS = "axis"
    """Median and p99.9 along the axis."""
    COST = "cost"
    """p99.9 against the extra work that was executed for it, at one point."""


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a figure: a policy, and what of the setting is its own (such as a decoder).

    `policy` is the policy's `name`, its options and those of a `dispatch` rule; times in seconds.
    `real`: whether the quick preset runs it for real, too.
    """

    label: str
    policy: dict[str, bool | int | float | str]
    setting: dict[str, Any] = {}
    real: bool = True

    @property
    def choice(self) -> PolicyChoice:
        """The policy, checked. Raises UserError for one that cannot be."""
        given = dict(self.policy)
        if "name" not in given:
            raise UserError(f"the policy of the series {self.label!r} has no name")
        return choose(str(given.pop("name")), given)


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure: the policies of `series` over the `points` of `axis`.

    A point names what it changes in `setting`. The axis is a field of Setting; or it is not, and
    points say in words what they are on it. `real` are the points that the quick preset runs for
    real, by position; it simulates all of them. `real_queries` and `simulated_queries` say
    otherwise than the quick preset how long its runs are. `apart`: not among `all` figures.
    """

    title: str
    axis: str
    points: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]
    setting: dict[str, Any] = {}
    real: tuple[int, ...] = (0,)
    picture: Picture = Picture.AXIS
    real_queries: Annotated[int, Meta(ge=100, le=10_000_000)] | None = None
    simulated_queries: Annotated[int, Meta(ge=100, le=10_000_000)] | None = None
    apart: bool = False

    def at(self, point: int, series: Series) -> Setting:
        """The setting of a series at a point."""
        changes = self.setting | self.points[point] | series.setting
        if self.in_words:
            del changes[self.axis]
        return msgspec.convert(changes, Setting)

    @property
    def in_words(self) -> bool:
        """Are the points names, not numbers?"""
        return self.axis not in Setting.__struct_fields__

    @property
    def labels(self) -> list[str]:
        """What the points are called."""
        return [_label(point[self.axis]) for point in self.points]

    @property
    def xs(self) -> list[float]:
        """Where the points are on the axis."""
        if self.in_words:
            return [float(index) for index in range(len(self.points))]
        return [float(point[self.axis]) for point in self.points]

    def check(self) -> None:
        """Raise msgspec.ValidationError or UserError for a setting that cannot be."""
        if not self.points or not self.series:
            raise UserError("an experiment needs a point and a series at least")
        for index in self.real:
            if not 0 <= index < len(self.points):
                raise UserError(f"real names point {index}; there are {len(self.points)}, from 0")
        for index, point in enumerate(self.points):
            if self.axis not in point:
                raise UserError(f"point {index} does not say what {self.axis} is there")
            if self.in_words and not isinstance(point[self.axis], str):
                known = ", ".join(Setting.__struct_fields__)
                raise UserError(
                    f"there is no setting {self.axis!r} to vary (there are {known}), and point "
                    f"{index} does not say in words what it is"
                )
            if not self.in_words and not isinstance(point[self.axis], int | float):
                raise UserError(f"{self.axis} cannot be the axis: it is no number at point {index}")
            for series in self.series:
                self.at(index, series)
        for series in self.series:
            _ = series.choice


def experiment_names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in FILES.iterdir() if _is_toml(file))


def load_experiment(name: str) -> Experiment:
    """Read an experiment: one that comes with the package, by name, or any file.

    Raises UserError if there is none or it is not an experiment.
    """
    file = FILES / f"{name}.toml" if name in experiment_names() else Path(name)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"it is longer than {MAX_BYTES} bytes")
        experiment = msgspec.toml.decode(content, type=Experiment)
        experiment.check()
    except OSError as error:
        known = ", ".join(experiment_names())
        raise UserError(
            f"cannot read the experiment {name}: {error.strerror}; give a file, or one of {known}"
        ) from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(
            f"{name} is not an experiment: {error}; see docs/research/latency.md"
        ) from error
    return experiment


def figures_of(names: list[str]) -> list[str]:
    """Those that `names` stand for: `all` is every experiment that is not apart.

    Raises UserError for a file whose result would be taken for another one's, as it has the name
    of a figure or of another file.
    """
    known = experiment_names()
    everyone = [name for name in known if not load_experiment(name).apart]
    listed = [other for name in names for other in (everyone if name == "all" else [name])]
    figures = list(dict.fromkeys(listed))
    called = Counter(Path(name).stem for name in {*known, *figures})
    for name in figures:
        if name not in known and called[Path(name).stem] > 1:
            raise UserError(
                f"{name} is called like another figure, whose result it would replace: rename it"
            )
    return figures


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _is_toml(file: Any) -> bool:
    return str(file.name).endswith(".toml")


def _mean(distribution: Distribution) -> float:
    match distribution:
        case Constant(seconds):
            return seconds
        case Uniform(low, high):
            return (low + high) / 2
        case Exponential(mean):
            return mean
        case LogNormal(median, sigma):
            return median * exp(sigma**2 / 2)
        case Empirical(seconds):
            return fmean(seconds)
